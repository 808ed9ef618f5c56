"""A stranger's tokenizer.json is used or refused in one line; it never ends the program."""

from __future__ import annotations

import base64
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nanogpt_cli.cli import app
from nanogpt_cli.errors import UserError
from nanogpt_cli.text.tokenizers import bpe, factory, foreign_tokenizer
from nanogpt_cli.text.tokenizers.tokenizer import CharTokenizer

Value = dict[str, Any]
TEXT = "hello world, it's 12 o'clock. " * 40


@pytest.fixture(scope="module")
def good() -> Value:
    value: Value = bpe.train(300, [TEXT]).to_json()["huggingface"]
    return value


def section(name: str, part: object) -> Callable[[Value], None]:
    return lambda value: value.update({name: part})


def model(**changes: Any) -> Callable[[Value], None]:
    return lambda value: value["model"].update(changes)


def token(name: str, id: object) -> Callable[[Value], None]:
    return lambda value: value["model"]["vocab"].update({name: id})


def merge(*pair: object) -> Callable[[Value], None]:
    return lambda value: value["model"]["merges"].append(list(pair))


def added(id: object, content: object) -> Callable[[Value], None]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    entry = {"id": id, "content": content, "special": True, **flags}
    return lambda value: value["added_tokens"].append(entry)


def words(pattern: str) -> Callable[[Value], None]:
    """Words by a pattern of one's own, in bytes as before."""
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                "use_regex": False}  # fmt: skip
    return section("pre_tokenizer", {"type": "Sequence", "pretokenizers": [split, to_bytes]})


def replace(pattern: Value, content: str) -> Value:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*members: Value) -> Value:
    return {"type": "Sequence", "normalizers": list(members)}


def nested(depth: int) -> Value:
    return sequence(nested(depth - 1)) if depth else {"type": "NFC"}


def charsmap(data: bytes) -> Value:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def unigram(**changes: Any) -> Callable[[Value], None]:
    made = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["h", -1.0]], **changes}
    return lambda value: value.update(model=made, added_tokens=[])


HOSTILE = {
    "model missing": (section("model", None), "model is missing"),
    "model unknown": (model(type="Nope"), "model.type is 'Nope'"),
    "vocab is a list": (model(vocab=[]), "model.vocab is not an object"),
    "id negative": (token("hi", -5), "model.vocab['hi'] is -5"),
    "id twice": (token("hi", 7), "model.vocab['hi'] has the id 7, and so has"),
    "id huge": (token("hi", 1 << 31), "model.vocab['hi'] is 2147483648"),
    "id is no integer": (token("hi", 1.5), "model.vocab['hi'] is 1.5"),
    "id is a truth value": (token("hi", True), "model.vocab['hi'] is True"),
    "half a surrogate pair": (token("\ud83d", 300), "half a surrogate pair"),
    "half a pair elsewhere": (section("truncation", {"\ud83d": 1}), "half a surrogate pair"),
    "merge of absent tokens": (merge("zz", "h"), "needs the token 'zz'"),
    "merge into an absent token": (merge("Q", "q"), "needs the token 'Qq'"),
    "merge of three": (merge("h", "e", "l"), "not a pair of tokens"),
    "merge of numbers": (merge(1, 2), "not a pair of tokens"),
    "merges missing": (model(merges=None), "model.merges is not a list"),
    "prefix that tokens lack": (model(continuing_subword_prefix="##"), "lacks the prefix '##'"),
    "dropout": (model(dropout=0.1), "model.dropout is 0.1"),
    "added beyond the vocabulary": (added(100_000, "<|x|>"), "gives '<|x|>' the id 100000"),
    "added over another": (added(5, "<|x|>"), "gives '<|x|>' the id 5"),
    "added negative": (added(-1, "<|x|>"), "added_tokens[1].id is -1"),
    "added empty": (added(300, ""), "added_tokens[1]"),
    "added without a text": (added(300, None), "added_tokens[1].content is None"),
    "normalizer unknown": (section("normalizer", {"type": "Nope"}), "normalizer.type is 'Nope'"),
    "pre_tokenizer unknown": (section("pre_tokenizer", {"type": 1}), "pre_tokenizer.type is 1"),
    "decoder unknown": (section("decoder", {"type": "Nope"}), "decoder.type is 'Nope'"),
    "post_processor unknown": (section("post_processor", {}), "post_processor.type is None"),
    "normalizer is a list": (section("normalizer", []), "normalizer is not an object"),
    "nested": (section("normalizer", nested(20)), "nested more than 8 deep"),
    "long": (section("normalizer", sequence(*[{"type": "NFC"}] * 99)), "more than 64 members"),
    "growing": (
        section("normalizer", sequence(*[replace({"String": "l"}, "l" * 100)] * 5)),
        "more than 16 times as long (at normalizer.normalizers[0])",
    ),
    "growing by patterns": (
        section("normalizer", sequence(*[replace({"Regex": "l"}, "lll")] * 4)),
        "more than 16 times as long (at normalizer.normalizers[2])",
    ),
    "growing in front": (
        section("normalizer", sequence(*[{"type": "Prepend", "prepend": "x" * 1000}] * 5)),
        "more than 16 times",
    ),
    "growing when decoded": (
        section("decoder", replace({"String": "l"}, "l" * 100)), "more than 16 times",
    ),
    "pattern empty": (section("normalizer", replace({"String": ""}, "ll")), "neither a String"),
    "regex empty": (section("normalizer", replace({"Regex": ""}, "ll")), "neither a String"),
    "charsmap that asks for memory": (section("normalizer", charsmap(b"\xff" * 36)), "is damaged"),
    "charsmap that grows": (
        section("normalizer", charsmap(b"\4\0\0\0" + bytes(4) + b"x" * 999)), "more than 40 bytes",
    ),
    "charsmap of nothing": (section("normalizer", charsmap(b"")), "is damaged"),
    "charsmap is no Base64": (
        section("normalizer", {"type": "Precompiled", "precompiled_charsmap": "@"}), "not Base64",
    ),
    "decoder strips beyond": (
        section("decoder", {"type": "Strip", "content": "h", "start": 10**9, "stop": 0}),
        "decoder.start is 1000000000",
    ),
    "pieces of length 0": (
        section("pre_tokenizer", {"type": "FixedLength", "length": 0}), "pre_tokenizer.length is 0",
    ),
    "backtracking": (words("(a+)+$"), "it fails on a text such as 'aaaaaaaaaaaa'"),
    "backtracking by choice": (words("(ab|abab)+c"), "it fails on"),
    "backtracking to an end": (words(r"(\w+\s?)*!"), "it fails on"),
    "backtracking ahead": (words("(?=(x+x+)+y)"), "it fails on"),
    "backtracking in a script": (words(r"(\p{Thai}+)+x"), "it fails on"),
    "pattern unfinished": (words("(a"), "not a Hugging Face tokenizer"),
    "unigram without a token": (unigram(vocab=[]), "not a Hugging Face tokenizer"),
    "unigram with an odd entry": (unigram(vocab=[["h"]]), "model.vocab[0] is not a token and"),
    "unigram with a token twice": (
        unigram(vocab=[["h", 0], ["h", 1]]), "model.vocab[1] is the token 'h' a second time",
    ),
}  # fmt: skip


def write(value: Value, path: Path = Path("other.json")) -> Path:
    path.write_text(json.dumps(value))
    return path.absolute()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)


@pytest.mark.parametrize("change,said", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_before_anything_is_written(
    good: Value, change: Callable[[Value], None], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    value = copy.deepcopy(good)
    change(value)
    path = write(value)
    done = CliRunner().invoke(app, ["prepare", "text.txt", "-t", str(path), "--out", "data"])
    assert isinstance(done.exception, UserError), done.exception
    assert said in done.exception.message
    assert done.exception.message.startswith(str(path))
    assert "\n" not in done.exception.message
    assert not Path("data").exists()
    assert "panicked" not in capfd.readouterr().err


def test_a_panic_is_neither_printed_nor_called_a_bug(good: Value) -> None:
    words("(a+)+$")(good := copy.deepcopy(good))
    done = subprocess.run(
        [sys.executable, "-m", "nanogpt_cli", "prepare", "text.txt", "-t", str(write(good))],
        capture_output=True, text=True, timeout=120, env={**os.environ, "RUST_BACKTRACE": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "other.json: it fails on a text such as" in done.stderr
    assert done.stderr.count("\n") == 2  # the message and its hint


def test_a_panic_while_encoding_is_an_error_that_names_the_file(
    good: Value, capfd: pytest.CaptureFixture[str]
) -> None:
    words(r"(\p{Ogham}+)+[0-9]")(good := copy.deepcopy(good))
    made = factory.load(write(good))  # no text that it is tried with has such letters
    with pytest.raises(UserError, match=r"other.json cannot encode this text: .*retry-limit"):
        made.encode("\u1681" * 64 + ", 1")
    capfd.readouterr()


FRIENDLY = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
    "digits from the right": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\P{N}+",
    "letters with marks": r"(?:\p{L}\p{M}*)+|\s+|[^\s\p{L}]+",
}


@pytest.mark.parametrize("pattern", FRIENDLY.values(), ids=FRIENDLY)
def test_word_patterns_of_published_tokenizers_are_used(good: Value, pattern: str) -> None:
    words(pattern)(good := copy.deepcopy(good))
    made = factory.load(write(good))
    assert made.decode(made.encode(TEXT)) == TEXT


LLAMA = sequence({"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁"))
XLNET = sequence(
    replace({"String": "``"}, '"'), replace({"String": "''"}, '"'), {"type": "NFKD"},
    {"type": "StripAccents"}, {"type": "Lowercase"}, replace({"Regex": " {2,}"}, " "),
)  # fmt: skip
CLIP = sequence({"type": "NFC"}, replace({"Regex": r"\s+"}, " "), {"type": "Lowercase"})


@pytest.mark.parametrize("normalizer", [LLAMA, XLNET, CLIP, {"type": "NFKC"}])
def test_normalisers_of_published_tokenizers_are_used(good: Value, normalizer: Value) -> None:
    section("normalizer", normalizer)(good := copy.deepcopy(good))
    assert factory.load(write(good)).encode("Hello  world")


def test_the_oldest_files_name_no_kind_of_model(good: Value) -> None:
    old = copy.deepcopy(good)
    del old["model"]["type"]
    old["model"]["merges"] = [" ".join(pair) for pair in old["model"]["merges"]]
    assert foreign_tokenizer.model_type(old["model"]) == "BPE"
    assert factory.load(write(old)).encode(TEXT) == bpe.HuggingFaceTokenizer(good).encode(TEXT)


def test_ids_between_those_of_tokens_decode_to_nothing(good: Value) -> None:
    token("zz", 400)(good := copy.deepcopy(good))
    made = factory.load(write(good))
    assert made.vocab_size == 401
    assert made.token_bytes(399) == b""
    assert made.decode([399, *made.encode("hi")]) == "hi"
    with pytest.raises(KeyError):
        made.token_bytes(401)


@pytest.mark.parametrize(
    ("eot", "said"), [(-1, "eot: input should be"), (10**9, f"end of text has the id {10**9}")]
)
def test_end_of_text_is_one_of_the_ids(good: Value, eot: int, said: str) -> None:
    ours = {**bpe.HuggingFaceTokenizer(good).to_json(), "eot": eot}
    with pytest.raises(UserError, match=said):
        factory.load(write(ours))


def test_half_a_surrogate_pair_is_no_character() -> None:
    with pytest.raises(UserError, match="half of a surrogate pair"):
        CharTokenizer(["a", "\udc80"])
