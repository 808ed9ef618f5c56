"""Preparing data: the bytes written, against code that does the same the slow way."""

import hashlib
import json
import types
from pathlib import Path

import numpy as np
import pytest

from nanogpt_cli.errors import UserError
from nanogpt_cli.text import build, pipeline, prepare, tokens
from nanogpt_cli.text.prepare import Request
from nanogpt_cli.text.sources import inputs
from nanogpt_cli.text.tokenizers import cuts, factory

TEXT = "It was a dark night; naïve Zoë wrote 12 lines.\n“Really?” 日本語。\n" * 40


def write(path: Path, text: str = TEXT) -> Path:
    path.write_bytes(text.encode())
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def made_from(*inputs: object, out: Path, **options: object) -> tokens.TokenData:
    request = Request(tuple(map(str, inputs)), **options)  # type: ignore[arg-type]
    return tokens.open_data(prepare.prepare(request, out=out).folder, verify=True)


def test_shakespeare_is_nanogpts(asset_cache) -> None:
    path = asset_cache("tinyshakespeare")
    data = tokens.open_data(prepare.prepare(Request(("shakespeare",))).folder)
    text = path.read_text()
    stoi = {c: i for i, c in enumerate(sorted(set(text)))}
    cut = int(len(text) * 0.9)
    assert (len(data.train), len(data.val), data.vocab_size) == (1_003_854, 111_540, 65)
    assert data.train.tobytes() == np.array([stoi[c] for c in text[:cut]], "<u2").tobytes()
    assert data.val.tobytes() == np.array([stoi[c] for c in text[cut:]], "<u2").tobytes()


def test_gpt2_shakespeare_is_nanogpts(asset_cache) -> None:
    text = asset_cache("tinyshakespeare").read_text()
    asset_cache("gpt2-vocab.bpe")
    request = Request(("shakespeare",), tokenizer="gpt2")
    data = tokens.open_data(prepare.prepare(request).folder)
    encode, cut = factory.get("gpt2").encode, int(len(text) * 0.9)
    assert (len(data.train), len(data.val)) == (301_966, 36_059)
    assert data.train.tolist() == encode(text[:cut])
    assert data.val.tolist() == encode(text[cut:])


@pytest.mark.parametrize("kind", ["char", "byte", "bpe:300"])
@pytest.mark.parametrize("val_fraction", [0.0, 0.1, 0.37, 0.9])
@pytest.mark.parametrize("block", [64, 1 << 19])
def test_tail_split_equals_encoding_both_parts(
    tmp_path: Path, kind: str, val_fraction: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "BLOCK", block)
    monkeypatch.setattr(cuts, "HEAD", 16)
    data = made_from(
        write(tmp_path / "a.txt"), out=tmp_path / "o", tokenizer=kind, val_fraction=val_fraction
    )
    cut = int(len(TEXT) * (1 - val_fraction))
    for split, part in (("train", TEXT[:cut]), ("val", TEXT[cut:])):
        assert getattr(data, split).tolist() == data.tokenizer.encode(part)
        info = getattr(data.manifest, split)
        assert (info.bytes, info.characters) == (len(part.encode()), len(part))


@pytest.mark.parametrize("block", [64, 1 << 19])
@pytest.mark.parametrize("val_fraction", [0.05, 0.25, 0.5, 0.75])
def test_tail_split_of_many_documents(
    tmp_path: Path, block: int, val_fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "BLOCK", block)
    monkeypatch.setattr(cuts, "HEAD", 16)
    texts = ["one document", "two " * 60, "three", "four " * 30]
    paths = [write(tmp_path / f"{i}.txt", text) for i, text in enumerate(texts)]
    data = made_from(
        *paths, out=tmp_path / "o", tokenizer="byte", eot=True, val_fraction=val_fraction
    )
    whole = [*data.train.tolist(), *data.val.tolist()]
    expected = [i for t in texts for i in (*t.encode(), 256)][:-1]
    assert whole == expected
    cut = int(len("".join(texts)) * (1 - val_fraction))
    assert sum(i != 256 for i in data.train.tolist()) == cut
    assert data.manifest.train.documents + data.manifest.val.documents == len(texts)
    assert data.manifest.raw["receipt"]["longest_document"]["tokens"] == max(map(len, texts))


def test_hash_split_keeps_documents_whole_and_in_place(tmp_path: Path) -> None:
    def split(count: int) -> dict[str, set[str]]:
        rows = [json.dumps({"text": f"document {i} " * (i % 7 + 1)}) for i in range(count)]
        path = write(tmp_path / f"{count}.jsonl", "\n".join(rows))
        data = made_from(path, out=tmp_path / f"o{count}", tokenizer="byte", eot=True)
        sides = {}
        for side in tokens.SPLITS:
            text = bytes(b if b < 256 else 0 for b in getattr(data, side).tolist()).decode()
            sides[side] = set(text.split("\0")[:-1])
        return sides

    few, many = split(300), split(500)
    assert few["val"] < many["val"]
    assert few["train"] < many["train"]
    assert 0.04 < len(many["val"]) / 500 < 0.16
    assert all(pipeline.goes_to_val(pipeline.digest(text.encode()), 0.1) for text in many["val"])


def test_threads_and_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt")

    def files(workers: int, name: str) -> list[bytes]:
        request = Request((str(path),), tokenizer="char")
        made = prepare.prepare(request, out=tmp_path / name, workers=workers)
        return [(made.folder / f).read_bytes() for f in ("train.bin", "val.bin", "tokenizer.json")]

    one = files(1, "one")
    monkeypatch.setattr(cuts, "BLOCK", 100)
    assert files(4, "four") == one
    monkeypatch.setattr(build, "_SETTLING_BYTES", 0)  # every character appears later: renumbered
    assert files(4, "late") == one


def test_large_vocabularies_are_uint32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    ranks = {bytes([i]): i for i in range(256)}
    wide = tiktoken.Encoding(
        "wide", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 100_256}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _: wide)
    factory._named.cache_clear()
    data = made_from(write(tmp_path / "a.txt"), out=tmp_path / "o", tokenizer="cl100k_base")
    factory._named.cache_clear()
    assert data.manifest.dtype == "uint32"
    assert (tmp_path / "o" / "train.bin").stat().st_size == 4 * len(data.train)
    assert bytes(data.train.tolist()).decode() == TEXT[: int(len(TEXT) * 0.9)]


def test_written_files_are_nanogpts(tmp_path: Path) -> None:
    data = made_from(write(tmp_path / "a.txt"), out=tmp_path / "o", tokenizer="byte")
    # The reading line of nanoGPT's train.py.
    raw = np.memmap(tmp_path / "o" / "train.bin", dtype=np.uint16, mode="r")
    assert raw.tolist() == data.train.tolist()
    assert not data.train.flags.writeable
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        "manifest.json", "sources.jsonl", "tokenizer.json", "train.bin", "val.bin",
    ]  # fmt: skip


def test_manifest_says_what_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    data = made_from(path, out=tmp_path / "o", tokenizer="byte")
    raw = data.manifest.raw
    assert raw["sources"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert raw["sources"]["bytes"] == path.stat().st_size
    receipt = raw["receipt"]
    assert receipt["unique_tokens"] == len(set(path.read_bytes()))
    counts = np.bincount(list(path.read_bytes()))
    assert receipt["most_frequent"][0]["id"] == int(counts.argmax())
    assert receipt["round_trip"]["samples"] == receipt["round_trip"]["exact"] > 0
    for split in tokens.SPLITS:
        content = (tmp_path / "o" / f"{split}.bin").read_bytes()
        assert raw[split]["sha256"] == hashlib.sha256(content).hexdigest()


def test_duplicates_and_leakage_are_counted(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}"} for i in range(20)]
    rows[18] = rows[3]  # a validation document that stands in train
    rows[5] = rows[4]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    tail = made_from(path, out=tmp_path / "t", tokenizer="byte", split="tail", val_fraction=0.2)
    receipt = tail.manifest.raw["receipt"]
    assert receipt["duplicates"] == 2
    assert receipt["round_trip"] == {"samples": 10, "exact": 10}
    assert receipt["leakage"]["in_train"] == 1
    assert receipt["leakage"]["val_documents"] in (3, 4)
    hashed = made_from(path, out=tmp_path / "h", tokenizer="byte", split="hash", val_fraction=0.5)
    assert hashed.manifest.raw["receipt"]["leakage"]["in_train"] == 0


def test_documents_are_compared_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from nanogpt_cli.text import receipt
    from nanogpt_cli.text.splits import DOCUMENT

    generator = np.random.default_rng(0)
    spool = np.zeros(5000, dtype=DOCUMENT)
    spool["digest"] = generator.integers(0, 3000, 5000)
    spool["place"] = generator.integers(0, 2, 5000)
    whole = receipt.compare_documents(spool, 5000)
    monkeypatch.setattr(receipt, "_BUCKET_DOCUMENTS", 700)
    assert receipt.compare_documents(spool, 5000) == whole
    train = set(spool["digest"][spool["place"] == 0].tolist())
    val = spool["digest"][spool["place"] == 1].tolist()
    assert whole["leakage"]["in_train"] == sum(d in train for d in val)
    assert whole["duplicates"] == 5000 - len(set(spool["digest"].tolist()))


def test_nothing_is_done_twice_and_nothing_whole_is_replaced(tmp_path: Path) -> None:
    path, changed = write(tmp_path / "a.txt"), TEXT + "more"
    said: list[str] = []

    def run(**options: object) -> tuple[str, bool]:
        request = Request((str(path),), tokenizer="byte", **options)  # type: ignore[arg-type]
        made = prepare.prepare(request, report=said.append)
        return made.folder.name, made.fresh

    assert run() == ("a-byte", True)
    path.touch()  # another time, the same bytes
    assert run() == ("a-byte", False)
    first = contents(prepare.find("a-byte"))
    write(path, changed)
    assert run() == ("a-2-byte", True)
    assert said[-1].endswith(f"a-byte stays as it is: {path} changed")
    assert run() == ("a-2-byte", False)
    assert run(val_fraction=0.2) == ("a-3-byte", True)
    assert "val_fraction was 0.1, now 0.2" in said[-1]
    assert contents(prepare.find("a-byte")) == first
    assert prepare.find("a").name == "a-2-byte"  # by its name alone: what was prepared last
    write(path)  # the text as it was has its set already
    assert run() == ("a-byte", False)


def test_a_damaged_set_is_made_again_in_its_place(tmp_path: Path) -> None:
    said: list[str] = []
    request = Request((str(write(tmp_path / "a.txt")),), tokenizer="byte")
    for out in (None, tmp_path / "o"):
        made = prepare.prepare(request, out=out).folder
        (made / "val.bin").write_bytes(b"\0\0")
        again = prepare.prepare(request, out=out, report=said.append)
        assert (again.folder, again.fresh) == (made, True)
        assert "val.bin has 2 bytes" in said[-1]
        assert not prepare.prepare(request, out=out).fresh


def test_only_force_replaces_a_set(tmp_path: Path) -> None:
    path, out = write(tmp_path / "a.txt"), tmp_path / "o"
    request = Request((str(path),), tokenizer="byte")
    for place in (None, out):
        made = prepare.prepare(request, out=place).folder
        before = contents(made)
        write(path, TEXT + str(place))
        if place:
            with pytest.raises(UserError, match=r"/o holds another set: .*a\.txt changed"):
                prepare.prepare(request, out=place)
        assert contents(made) == before
        forced = prepare.prepare(request, out=place, force=True)
        assert forced.folder == made
        assert contents(made) != before
        assert forced.manifest == tokens.read_manifest(made).raw


def test_a_set_of_a_newer_version_is_never_replaced(tmp_path: Path) -> None:
    path, out = write(tmp_path / "a.txt"), tmp_path / "o"
    request = Request((str(path),), tokenizer="byte")
    for place in (None, out):
        made = prepare.prepare(request, out=place).folder
        manifest = json.loads((made / "manifest.json").read_text()) | {"version": 99}
        (made / "manifest.json").write_text(json.dumps(manifest))
        if place is None:
            assert prepare.prepare(request).folder.name == "a-2-byte"
        else:
            with pytest.raises(UserError, match="written by a newer version"):
                prepare.prepare(request, out=place)
        assert json.loads((made / "manifest.json").read_text()) == manifest


def test_the_same_standard_input_makes_one_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for text in (TEXT, TEXT, TEXT + "more", TEXT):
        with write(tmp_path / "piped", text).open("rb") as pipe:
            monkeypatch.setattr(inputs, "sys", types.SimpleNamespace(stdin=pipe))
            made = prepare.prepare(Request(("-",), tokenizer="byte"))
        assert made.manifest == tokens.read_manifest(made.folder).raw
        folders.append((made.folder.name, made.fresh))
    names = ["stdin-byte", "stdin-byte", "stdin-2-byte", "stdin-byte"]
    assert folders == list(zip(names, [True, False, True, False], strict=True))


def test_a_new_file_in_a_folder_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    write(folder / "a.txt")
    request = Request((str(folder),), tokenizer="byte")
    assert prepare.prepare(request).fresh
    assert not prepare.prepare(request).fresh
    write(folder / "b.txt")
    assert prepare.prepare(request).fresh
    (folder / "a.txt").unlink()
    assert prepare.prepare(request).fresh


def test_sets_of_the_same_name_stand_side_by_side(tmp_path: Path) -> None:
    folders = []
    for parent in ("x", "y"):
        (tmp_path / parent).mkdir()
        path = write(tmp_path / parent / "input.txt", TEXT + parent)
        folders.append(prepare.prepare(Request((str(path),), tokenizer="byte")).folder)
    assert folders[0] != folders[1]
    assert all(tokens.open_data(folder, verify=True) for folder in folders)


def test_ensure_prepares_once_and_takes_folders(tmp_path: Path, asset_cache) -> None:
    asset_cache("tinyshakespeare")
    said: list[str] = []
    first = prepare.ensure({"name": "shakespeare", "tokenizer": "byte"}, report=said.append)
    assert len(said) == 2
    again = prepare.ensure({"name": "shakespeare", "tokenizer": "byte"}, report=said.append)
    assert (again, len(said)) == (first, 2)
    assert (
        prepare.ensure(
            {"name": str(first), "tokenizer": "char", "val_fraction": 0.5}, report=said.append
        )
        == first
    )
    other = prepare.ensure(
        {"name": "shakespeare", "tokenizer": "byte", "val_fraction": 0.2}, report=said.append
    )
    assert other != first
    assert tokens.read_manifest(first).val_fraction == 0.1
    assert tokens.read_manifest(other).val_fraction == 0.2
    path = write(tmp_path / "own.txt")
    own = prepare.ensure({"name": str(path), "tokenizer": "byte"}, report=said.append)
    assert tokens.read_manifest(own).name == "own"
    with pytest.raises(UserError, match="did you mean 'shakespeare'"):
        prepare.ensure({"name": "shakespear", "tokenizer": "char"}, report=said.append)


def test_a_prepared_set_is_no_text(tmp_path: Path) -> None:
    data = made_from(write(tmp_path / "a.txt"), out=tmp_path / "o", tokenizer="byte")
    with pytest.raises(UserError, match="is a prepared data set already"):
        prepare.prepare(Request((str(data.folder),)))


def test_python_set_needs_no_network() -> None:
    request = Request(("python",), tokenizer="byte", limit=40)
    data = tokens.open_data(prepare.prepare(request).folder)
    assert data.manifest.raw["receipt"]["documents"] == 40
    assert data.manifest.split == "hash"


def test_limit_stops_early_and_stays_up_to_date(tmp_path: Path) -> None:
    for i in range(5):
        write(tmp_path / f"{i}.txt", f"text {i}")
    request = Request((str(tmp_path),), tokenizer="byte", limit=2)
    made = prepare.prepare(request)
    assert made.manifest["receipt"]["documents"] == 2
    assert not prepare.prepare(request).fresh


def test_progress_ends_at_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "BLOCK", 256)
    path = write(tmp_path / "a.txt")
    seen: list[build.PrepareProgress] = []
    request = Request((str(path),), tokenizer="byte")
    prepare.prepare(request, out=tmp_path / "o", progress=seen.append)
    assert seen[-1].bytes == seen[-1].total == seen[-1].tokens == path.stat().st_size
    assert [p.tokens for p in seen] == sorted(p.tokens for p in seen)
    assert len(seen) > 5


def test_training_a_bpe_says_how_far_it_is(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.txt") for i in range(8)]
    seen: list[build.PrepareProgress] = []
    prepare.prepare(Request((str(tmp_path),), tokenizer="bpe:270"), progress=seen.append)
    assert list(dict.fromkeys(p.doing for p in seen)) == [
        "reading for the BPE", "merging pairs", "tokenizing",
    ]  # fmt: skip
    reading = [p for p in seen if p.doing == "reading for the BPE"]
    assert [p.bytes for p in reading] == sorted({p.bytes for p in reading})
    assert len(reading) == len(paths)
    size = sum(path.stat().st_size for path in paths)
    assert reading[-1].bytes == reading[-1].total == seen[-1].bytes == seen[-1].total == size


def test_tokens_that_are_parts_of_characters_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "zh.txt", "日本語 " * 500)
    receipt = made_from(path, out=tmp_path / "o", tokenizer="byte").manifest.raw["receipt"]
    shown = [token["quoted"] for token in receipt["most_frequent"]]
    assert r"b'\xe6'" in shown
    assert "' '" in shown
    assert len(set(shown)) == len(shown)
