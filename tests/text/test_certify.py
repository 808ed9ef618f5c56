"""The proof of a split's bytes: what is right passes, and every planted mistake is found."""

from __future__ import annotations

import gzip
import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_cli import files
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import prepare, tokens
from nanogpt_cli.text.prepare import Request
from nanogpt_cli.text.proof import decoded
from nanogpt_cli.text.proof.certificate import Certificate
from nanogpt_cli.text.proof.certify import certify
from nanogpt_cli.text.tokenizers import bpe, cuts, tiktoken_bpe
from nanogpt_cli.text.tokenizers.factory import get
from nanogpt_cli.text.tokenizers.token_table import TokenTable

TEXT = "The Café  naïve, do not Stop 日本 😀\n\nnew\tÜnknown x\u0301y wörld! "
LEARNT = [TEXT.replace("Ü", ""), "tokens and words, of this world"] * 20


OWN = ("char", "byte", "bpe:300")
EXACT = {*OWN, "byte-level", "byte-level, added tokens", "unigram, byte fallback",
         "sentencepiece, byte fallback"}  # fmt: skip


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Kinds of tokenizers that ``prepare`` takes, the foreign ones as files."""
    folder = tmp_path_factory.mktemp("tokenizers")
    found = {kind: kind for kind in OWN}
    for number, name in enumerate(families.HUGGING_FACE):
        path = folder / f"{number}.json"
        path.write_text(json.dumps(families.tokenizer_json(name)))
        found[name] = str(path)
    return found


def made_from(path: Path, out: Path, **options: Any) -> tokens.TokenData:
    request = Request((str(path),), **options)
    return tokens.open_data(prepare.prepare(request, out=out, force=True).folder)


def records(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def both(data: tokens.TokenData) -> list[Certificate]:
    found = [certify(data, split) for split in tokens.SPLITS]
    for made in found:
        assert made.passed, made.difference
    return found


@pytest.mark.parametrize("name", [*OWN, *families.HUGGING_FACE])
def test_documents_of_every_family_are_accounted_for(
    name: str, vocabularies: dict[str, str], tmp_path: Path
) -> None:
    texts = [f"{i} {TEXT * (i % 4)}" for i in range(40)]
    data = made_from(records(tmp_path / "r.jsonl", texts), tmp_path / "set",
                     tokenizer=vocabularies[name], val_fraction=0.3)  # fmt: skip
    for split, made in zip(tokens.SPLITS, both(data), strict=True):
        kept = [text for text in texts if side(text, 0.3) == split]
        whole = "".join(kept).encode()
        assert (made.bytes, made.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
        assert made.tokens == len(getattr(data, split))
        assert made.end_of_text == (0 if data.tokenizer.eot is None else len(kept))
        assert (made.lost.total == made.lost.added == 0) == (name in EXACT)


def side(text: str, val_fraction: float) -> str:
    """The split of a document by the documented rule: the first 64 bits of its hash."""
    start = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return "val" if start < val_fraction * 2.0**64 else "train"


@pytest.mark.parametrize("name", [*OWN, *families.HUGGING_FACE])
@pytest.mark.parametrize("val_fraction", [0.1, 0.5, 0.93])
def test_a_text_cut_in_two_in_small_blocks(
    name: str, val_fraction: float, vocabularies: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(cuts, "BLOCK", 64)
    monkeypatch.setattr(cuts, "HEAD", 16)
    monkeypatch.setattr(decoded, "_BLOCK", 7)
    text = TEXT * 12
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(text.encode()))
    data = made_from(path, tmp_path / "set", tokenizer=vocabularies[name],
                     val_fraction=val_fraction)  # fmt: skip
    cut = data.manifest.train.characters
    for part, made in zip((text[:cut], text[cut:]), both(data), strict=True):
        assert made.bytes == len(part.encode())
        assert made.sha256 == hashlib.sha256(part.encode()).hexdigest()
        assert made.sources["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@settings(max_examples=8)
@given(
    texts=st.lists(st.text(min_size=1, max_size=40), min_size=8, max_size=20),
    kind=st.sampled_from(["char", "byte"]),
    eot=st.booleans(),
    rule=st.sampled_from(["tail", "hash"]),
)
def test_any_text_is_proved(texts: list[str], kind: str, eot: bool, rule: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = records(Path(name) / "r.jsonl", texts)
        try:
            data = made_from(path, Path(name) / "set", tokenizer=kind, eot=eot, split=rule,
                             val_fraction=0.5)  # fmt: skip
        except UserError:  # one side is empty
            return
        assert sum(made.bytes for made in both(data)) == len("".join(texts).encode())


@pytest.mark.parametrize(("val_fraction", "kept"), [(0.09, 36), (0.08, 37), (0.5, 20)])
def test_a_cut_within_a_short_document_is_moved_between_documents(
    val_fraction: float, kept: int, tmp_path: Path
) -> None:
    path = records(tmp_path / "r.jsonl", ["abcdefgh"] * 40)
    asked = {"tokenizer": "bpe:300", "split": "tail"}
    whole = made_from(path, tmp_path / "whole", **asked, val_fraction=0.0)
    data = made_from(path, tmp_path / "set", **asked, val_fraction=val_fraction)
    assert [*data.train, *data.val] == whole.train.tolist()
    assert data.manifest.train.characters == 8 * kept
    assert data.train[-1] == data.tokenizer.eot
    assert data.manifest.val.documents == 40 - kept
    assert sum(made.end_of_text for made in both(data)) == 39


def test_losses_are_counted_by_cause(vocabularies: dict[str, str], tmp_path: Path) -> None:
    texts = [f"{i} The  QUICK wörld Ωmega, words!" for i in range(60)]
    path = records(tmp_path / "r.jsonl", texts)
    data = made_from(path, tmp_path / "lower", tokenizer=vocabularies["byte-level, lower case"])
    made = certify(data, "train")
    upper = sum(c.isupper() for t in texts if side(t, 0.1) == "train" for c in t)
    assert made.lost.changed >= upper  # whole tokens are changed, of which these are a part
    assert (made.lost.white_space, made.lost.unknown, made.lost.dropped) == (0, 0, 0)
    data = made_from(path, tmp_path / "words", tokenizer=vocabularies["wordpiece"])
    made = certify(data, "train")
    kept = [t for t in texts if side(t, 0.1) == "train"]
    assert made.lost.unknown  # no token has the Omega
    assert made.lost.white_space == len(kept)  # one of the two spaces
    assert made.lost.added == len(kept)  # one before "!", which is unknown
    assert made.lost.example is not None


@pytest.mark.parametrize("errors", ["replace", "skip"])
def test_bytes_that_were_not_utf8_count_as_the_sources(errors: str, tmp_path: Path) -> None:
    raw = ("é and " * 40).encode("latin-1") + "日本".encode() * 9 + b"\xe6\x97" + b"ascii " * 9
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    for fraction in (0.1, 0.4, 0.7, 0.9):
        data = made_from(path, tmp_path / "set", tokenizer="byte", errors=errors,
                         val_fraction=fraction)  # fmt: skip
        found = both(data)
        assert sum(made.bytes for made in found) == len(raw)
        assert sum(made.lost.broken for made in found) == 42
        assert data.manifest.train.bytes + data.manifest.val.bytes != len(raw)


# Planted mistakes.


def of_gpt2(path: Path, out: Path, asset_cache: Callable[[str], Path]) -> tokens.TokenData:
    asset_cache("gpt2-vocab.bpe")
    path.write_text("plain words first, then Café naïve 日本語 and more words. " * 40)
    return made_from(path, out, tokenizer="gpt2", val_fraction=0.5)


def double_space(piece: bytes) -> bytes:
    return b" " + piece if piece.startswith(b" ") else piece


def one_byte_a_character(piece: bytes) -> bytes:
    return piece[: len(piece.decode("utf-8", "ignore"))]


@pytest.mark.parametrize("wrong", [double_space, one_byte_a_character])
def test_a_wrong_byte_table_is_found(
    wrong: Callable[[bytes], bytes], tmp_path: Path, asset_cache: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = of_gpt2(tmp_path / "a.txt", tmp_path / "set", asset_cache)
    right = [get("gpt2").token_bytes(int(id)) for id in data.train]
    assert certify(data, "train").passed
    original = tiktoken_bpe.TiktokenTokenizer.token_bytes
    monkeypatch.setattr(
        tiktoken_bpe.TiktokenTokenizer, "token_bytes", lambda self, id: wrong(original(self, id))
    )
    found = certify(data, "train").difference
    assert found is not None
    first = next(i for i, piece in enumerate(right) if wrong(piece) != piece)
    source, told = b"".join(right), b"".join(map(wrong, right))
    assert found.byte == next(i for i, (a, b) in enumerate(zip(source, told)) if a != b)  # noqa: B905
    assert first <= (found.token or 0) <= first + 1
    assert found.where == f"{tmp_path / 'a.txt'}, byte {found.byte}"


@pytest.mark.parametrize("dropped", ["o", "é", " "])
def test_a_decoder_that_drops_text_is_found(dropped: str, tmp_path: Path) -> None:
    drop = {"type": "Replace", "pattern": {"String": dropped}, "content": ""}
    value = families.tokenizer_json("byte-level")
    decoder = {"type": "Sequence", "decoders": [value["decoder"], drop]}
    (tmp_path / "t.json").write_text(json.dumps(value | {"decoder": decoder}))
    path = records(tmp_path / "r.jsonl", [f"{i} {TEXT}" for i in range(40)])
    data = made_from(path, tmp_path / "set", tokenizer=str(tmp_path / "t.json"))
    made = certify(data, "val")
    if dropped == " ":  # as of a vocabulary of words: said, with the number of bytes
        assert made.passed
        text = "".join(t for i in range(40) if side(t := f"{i} {TEXT}", 0.1) == "val")
        assert made.lost.white_space == text.count(" ")
        return
    found = made.difference
    assert found is not None
    assert found.reason == "the tokenizer's decoder does not give the text back"
    assert dropped in found.source.decode()
    assert dropped not in found.found.decode("utf-8", "replace").partition("\n")[0][:1]
    assert found.where.startswith(f"{path}, record ")


def rewritten(data: tokens.TokenData, split: str, **values: Any) -> tokens.TokenData:
    """The set with another entry for a split, its checksum right again."""
    raw = dict(data.manifest.raw)
    raw[split] = raw[split] | values
    tokens.write_manifest(data.folder, raw)
    return tokens.open_data(data.folder)


def test_a_miscounted_manifest_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXT * 400)
    data = made_from(path, tmp_path / "set", tokenizer="byte", val_fraction=0.9)
    size = data.manifest.val.bytes
    found = certify(rewritten(data, "val", bytes=round(size * 1.1289 / 0.9485)), "val").difference
    assert found is not None
    assert f"where the source has {size:,}" in found.reason
    assert "0.8402 times the true ones" in found.reason


def edited(data: tokens.TokenData, change: Callable[[Any], Any]) -> tokens.TokenData:
    """The set with other validation tokens, and a manifest that fits them."""
    ids = change(np.array(data.val))
    path = data.folder / "val.bin"
    ids.tofile(path)
    about = {"tokens": len(ids), "sha256": files.sha256_file(path)}
    return rewritten(data, "val", **about, mtime_ns=path.stat().st_mtime_ns)


def replaced(ids: Any) -> Any:
    ids[17] = (ids[17] + 1) % 256
    return ids


def test_other_tokens_are_found(tmp_path: Path) -> None:
    path = records(tmp_path / "r.jsonl", [f"{i} {TEXT}" for i in range(60)])

    def proof(change: Callable[[Any], Any]) -> Any:
        data = made_from(path, tmp_path / "set", tokenizer="byte", eot=True)
        return certify(edited(data, change), "val").difference

    found = proof(replaced)
    assert (found.token, found.byte) == (17, 17)
    assert "other bytes" in found.reason
    assert "the tokens end before" in proof(lambda ids: ids[:-9]).reason
    assert "the source ends before" in proof(lambda ids: np.append(ids, ids[-9:])).reason
    first = next(i for i, id in enumerate(made_from(path, tmp_path / "set", tokenizer="byte",
                                                    eot=True).val) if id == 256)  # fmt: skip
    found = proof(lambda ids: np.insert(np.delete(ids, first), 5, 256))
    assert (found.token, found.byte) == (5, 5)
    assert found.reason == "an end-of-text token stands where no document ends"
    found = proof(lambda ids: np.delete(ids, first))
    assert (found.reason, found.byte) == ("a document ends without an end-of-text token", first)


@pytest.mark.parametrize("name", ["unigram", "wordpiece"])
def test_other_tokens_of_a_vocabulary_that_loses_text_are_found(
    name: str, vocabularies: dict[str, str], tmp_path: Path
) -> None:
    path = records(tmp_path / "r.jsonl", [f"{i} {TEXT}" for i in range(60)])
    data = made_from(path, tmp_path / "set", tokenizer=vocabularies[name])
    later = next(i for i in range(9, len(data.val)) if data.val[i] != data.val[3])

    def swapped(ids: Any) -> Any:
        ids[later] = ids[3]
        return ids

    found = certify(edited(data, swapped), "val").difference
    assert found is not None
    assert found.token == later
    assert found.reason == "encoding the source again gives another token"


def test_without_its_source_nothing_is_proved(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text(f"{i} {TEXT}" * 9)
    data = made_from(folder, tmp_path / "set", tokenizer="byte", val_fraction=0.5)
    assert certify(data, "val").passed

    def refused(what: str) -> None:
        with pytest.raises(UserError, match=what) as caught:
            certify(data, "val")
        assert "nothing can be proved" in caught.value.message
        assert "sources.jsonl" in caught.value.hint

    kept = (folder / "1.txt").read_text()
    (folder / "1.txt").write_text(kept.replace("Café", "Cafe"))
    refused(r"1\.txt was changed since")
    (folder / "1.txt").write_text(kept)
    assert certify(data, "val").passed
    (folder / "3.txt").write_text("more")
    refused(r"3\.txt was added")
    (folder / "3.txt").unlink()
    (folder / "1.txt").unlink()
    refused(r"1\.txt is gone")


def test_the_table_decodes_as_the_vocabulary_does() -> None:
    tokenizer = bpe.train(300, [TEXT])
    table = TokenTable.of(tokenizer)
    ids = np.array([*range(tokenizer.vocab_size), *range(200)], dtype=np.uint16)
    found, ends = table.decode(ids)
    pieces = [b"" if id == tokenizer.eot else tokenizer.token_bytes(int(id)) for id in ids]
    assert found.tobytes() == b"".join(pieces)
    assert ends.tolist() == np.cumsum([len(piece) for piece in pieces]).tolist()
    assert table.first_unknown(np.array([3, 300, 2])) == 1
    assert table.first_unknown(np.array([3, 2])) is None
