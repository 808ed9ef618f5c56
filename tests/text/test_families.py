"""Every family of tokenizers: ids, text and streamed text are the library's; splits keep bytes."""

from __future__ import annotations

import json
from pathlib import Path

import families
import pytest
import torch
from click.testing import Result
from families import ALL, ATOMS, HUGGING_FACE, library, ours
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from nanogpt_cli.cli import app, sources
from nanogpt_cli.errors import UserError
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.sampling.continuation import generate_text
from nanogpt_cli.text import prepare, tokens
from nanogpt_cli.text.prepare import Request
from nanogpt_cli.text.tokenizers import cuts
from nanogpt_cli.text.tokenizers.stream import TextStream, text_of
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer
from nanogpt_cli.training.checkpoints import checkpoint

TEXTS = st.lists(st.sampled_from(ATOMS), max_size=40).map("".join)
# These change no text, so that decoding gives it back.
LOSSLESS = ("char", "byte", "gpt2", "bpe:300", "byte-level", "byte-level, added tokens")
few = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True, scope="module")
def gpt2_vocabulary(session_asset, tmp_path_factory: pytest.TempPathFactory):
    """GPT-2's merges in a cache folder of this module."""
    import shutil

    from nanogpt_cli import places

    path = session_asset("gpt2-vocab.bpe")
    places.assets_folder().mkdir(parents=True, exist_ok=True)
    shutil.copy(path, places.assets_folder())
    ours("gpt2")


@pytest.mark.parametrize("family", HUGGING_FACE)
@few
@given(text=TEXTS)
def test_ids_and_text_are_the_librarys(family: str, text: str) -> None:
    made = ours(family)
    ids = made.encode(text)
    assert ids == library(family).encode(text, add_special_tokens=False).ids
    # The library itself loses letters of added tokens; see ``HuggingFaceTokenizer.decode``.
    if family != "byte-level, added tokens":
        assert made.decode(ids) == library(family).decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("family", LOSSLESS)
@few
@given(text=TEXTS)
def test_decoding_gives_the_text_back(family: str, text: str) -> None:
    made = ours(family)
    ids = made.encode(text)
    assert made.decode(ids) == text
    assert b"".join(map(made.token_bytes, ids)) == text.encode()


@pytest.mark.parametrize("family", ALL)
@few
@given(prompt=TEXTS, text=TEXTS)
def test_streamed_text_is_that_of_decoding_at_once(family: str, prompt: str, text: str) -> None:
    made = ours(family)
    before, ids = made.encode(prompt), made.encode(text)
    assert text_of(made, ids) == made.decode(ids)
    stream = TextStream(made, context=before)
    pieces = [*map(stream.push, ids), stream.finish()]
    while made.eot in before:  # a new text begins after it
        before = before[before.index(made.eot) + 1 :]
    assert made.decode(before) + "".join(pieces) == made.decode(before + ids)


@pytest.mark.parametrize("family", ALL)
@few
@given(data=st.data())
def test_any_ids_are_streamed_as_they_are_decoded(family: str, data: st.DataObject) -> None:
    made = ours(family)
    ids = data.draw(st.lists(st.integers(0, made.vocab_size - 1), max_size=60))
    if not made.byte_ids:
        assert text_of(made, ids) == made.decode(ids)
        return
    # The library drops a whole run of bytes for one mistake in it: take the mistakes away.
    question = next(id for id, byte in made.byte_ids.items() if byte == ord("?"))
    assert text_of(made, ids).replace("\ufffd", "?") == made.decode(
        [question if broken else id for id, broken in zip(ids, mistakes(made, ids), strict=True)]
    ).replace("\ufffd", "?")


@pytest.mark.parametrize("family", ["unigram, byte fallback", "sentencepiece, byte fallback"])
def test_whole_characters_of_a_broken_run_are_kept_here_and_lost_in_the_library(
    family: str,
) -> None:
    made = ours(family)
    id_of = {byte: id for id, byte in made.byte_ids.items()}
    ids = [*made.encode("a"), *(id_of[byte] for byte in "é".encode() + b"\xff" + "日".encode())]
    start = made.decode(ids[:-6])
    assert text_of(made, ids) == start + "é\ufffd日"
    assert library(family).decode(ids, skip_special_tokens=False) == start + "\ufffd" * 6


def mistakes(made: Tokenizer, ids: list[int]) -> list[bool]:
    """Whether each id is a byte that belongs to no whole character."""
    broken = [id in made.byte_ids for id in ids]
    for start in range(len(ids)):
        for end in range(start + 1, min(start + 4, len(ids)) + 1):
            if all(broken[start:end]):
                try:
                    character = bytes(made.byte_ids[id] for id in ids[start:end]).decode()
                except UnicodeDecodeError:
                    continue
                if len(character) == 1:
                    broken[start:end] = [False] * (end - start)
    return broken


@pytest.mark.parametrize("family", ALL)
@few
@given(text=TEXTS)
def test_the_bytes_of_tokens_add_up_to_the_text(family: str, text: str) -> None:
    made = ours(family)
    ids = made.encode(text)
    found = b"".join(map(made.token_bytes, ids)).decode()
    # Where words begin with their space, only the first of a text is shown without it.
    assert found in (made.decode(ids), " " + made.decode(ids))


@pytest.mark.parametrize("family", ALL)
@settings(few, max_examples=5)
@given(
    middle=st.lists(st.sampled_from(ATOMS), max_size=80).map("".join),
    val_fraction=st.sampled_from([0.1, 0.5, 0.77]),
    block=st.sampled_from([64, 1 << 19]),
)
def test_both_parts_of_a_split_are_encoded_from_their_own_bytes_and_are_the_whole(
    family: str, middle: str, val_fraction: float, block: int, tmp_path: Path
) -> None:
    text = "The quick fox. " * 3 + middle + " Hello, don't stop here. " * 4
    source, kind = tmp_path / "a.txt", family
    source.write_bytes(text.encode())
    if family in HUGGING_FACE:
        kind = str(tmp_path / "made.json")
        Path(kind).write_text(json.dumps(families.tokenizer_json(family)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "BLOCK", block)
        patch.setattr(cuts, "HEAD", 16)
        request = Request((str(source),), tokenizer=kind, val_fraction=val_fraction)
        made = prepare.prepare(request, out=tmp_path / "set", force=True)
        request = Request((str(source),), tokenizer=kind, val_fraction=0)
        whole = prepare.prepare(request, out=tmp_path / "whole", force=True)
    data = tokens.open_data(made.folder, verify=True)
    wanted, cut = int(len(text) * (1 - val_fraction)), data.manifest.train.characters
    encode = data.tokenizer.encode
    reach = min(wanted, len(text) - wanted) // 2
    assert abs(cut - wanted) <= reach
    if [*data.train, *data.val] != tokens.open_data(whole.folder).train.tolist():
        assert cut == wanted
        parts = ((text[:at], text[at:]) for at in range(wanted - reach, wanted + reach + 1))
        # In small blocks only the one that is cut is looked at.
        assert block == 64 or not any(encode(a) + encode(b) == encode(text) for a, b in parts)
    elif cut != wanted:  # nanoGPT's own cut would have changed the tokens
        assert encode(text[:wanted]) + encode(text[wanted:]) != encode(text)
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        info = getattr(data.manifest, split)
        assert getattr(data, split).tolist() == encode(part)
        assert (info.bytes, info.characters) == (len(part.encode()), len(part))
        if family in LOSSLESS:
            assert text_of(data.tokenizer, getattr(data, split).tolist()) == part
    receipt = data.manifest.raw["receipt"]
    assert receipt["tokens"] == len(data.train) + len(data.val)
    assert sorted(path.suffix for path in made.folder.iterdir()) == [
        ".bin", ".bin", ".json", ".json", ".jsonl",
    ]  # fmt: skip


def command(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture
def run(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with this tokenizer, in the current folder."""
    monkeypatch.chdir(tmp_path)
    made = ours(family)
    torch.manual_seed(1)
    # Rows beyond the vocabulary, as with a size rounded up for speed; they are never drawn.
    model = GPT(GPTConfig(1, 2, 16, 32, made.vocab_size + 7, 0.0, True, "gelu"))
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.path.mkdir(parents=True)
    folder.recipe.write_text("")
    checkpoint.save(folder, model, {"step": 5}, tokenizer=made.to_json())
    return folder.path


@pytest.mark.parametrize("family", ["byte-level, added tokens", "unigram", "wordpiece"])
def test_sample_writes_what_decoding_the_whole_gives(family: str, run: Path) -> None:
    made = ours(family)
    common = ("sample", str(run), "-p", "The quick", "-n", "40", "--seed", "3", "--threads", "1")
    plain = command(*common).stdout
    [one] = json.loads(command(*common, "--json").stdout)["samples"]
    before = made.encode("The quick")
    whole = made.decode(before + one["tokens"])
    assert made.decode(before) + one["text"] == whole
    assert plain == "The quick" + one["text"] + "\n"
    # As a run writes its own samples.
    model = sources.resolve(str(run)).model
    text = generate_text(model, made, "The quick", max_new_tokens=40, seed=3)
    assert text == "The quick" + one["text"]
    stop = one["text"][20:24]
    [cut] = json.loads(command(*common, "--json", "--stop", stop).stdout)["samples"]
    assert cut["text"] == one["text"][: one["text"].index(stop)]
    listed = command(*common, "--logprobs").stdout
    assert all(f" {token!r} " in listed for token in pieces_of(made, one["tokens"]))


def pieces_of(made: Tokenizer, ids: list[int]) -> list[str]:
    """The texts of the tokens that are whole characters."""
    found = [made.token_bytes(id).decode(errors="replace") for id in ids]
    return [text for text in found if "\ufffd" not in text]


@pytest.mark.parametrize("family", ["char", "byte", "bpe:300", "sentencepiece, byte fallback"])
def test_prepare_with_the_tokenizer_of_a_run(family: str, run: Path, tmp_path: Path) -> None:
    text = "The quick Café. 日本 " * 30
    (tmp_path / "new.txt").write_text(text, "utf-8")
    kept = next(run.glob("checkpoints/*/tokenizer.json"))
    for number, where in enumerate((run, kept, kept.parent)):
        out = str(tmp_path / f"set{number}")
        told = command("prepare", "new.txt", "-t", str(where), "--out", out).stderr
        data = tokens.open_data(Path(out))
        assert data.manifest.fingerprint == ours(family).fingerprint()
        assert data.val.tolist() == ours(family).encode(text[int(len(text) * 0.9) :])
        assert f"data.tokenizer={where.relative_to(tmp_path)}" in told.replace("'", "")


@pytest.mark.parametrize("family", ["char"])
def test_a_text_with_other_characters_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("The quick ж and ξ" * 30, "utf-8")
    for options, said in (([], "'ξ' (U+03BE)"), (["--eot"], "no end-of-text token")):
        result = CliRunner().invoke(app, ["prepare", "new.txt", "-t", "runs/mine", *options])
        assert isinstance(result.exception, UserError)
        assert said in result.exception.message
    result = CliRunner().invoke(app, ["prepare", "new.txt", "-t", "runs"])
    assert isinstance(result.exception, UserError)
    assert "runs holds no tokenizer" in result.exception.message


def test_half_a_surrogate_pair_is_no_text(gpt2_vocabulary) -> None:
    for family in ALL:
        with pytest.raises(UserError, match="character 2"):
            ours(family).encode("a\ud83d")
