"""Tokenizer files of Hugging Face folders give the ids that transformers reads from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import huggingface
from nanogpt_cli.text.tokenizers import factory, huggingface_files
from nanogpt_cli.text.tokenizers.tiktoken_bpe import TiktokenTokenizer
from nanogpt_cli.text.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

TEXT = "Hello world  <|user|> CAFÉ, a Café and a café.\n<|endoftext|> naïve café 日本 x<|user|>y"
SPECIAL = {
    "lstrip": False,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
    "special": True,
}

Change = Callable[[Path, dict[str, Any], dict[str, Any]], None]


@pytest.fixture
def gpt2(asset_cache, tmp_path: Path) -> Path:
    """A folder with GPT-2's tokenizer in both forms."""
    asset_cache("gpt2-vocab.bpe")
    folder = tmp_path / "gpt2"
    folder.mkdir()
    huggingface._write_tokenizer(factory.get("gpt2"), folder, 1024)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


def ids_of_transformers(folder: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    # Special tokens in a text are text, as they are here.
    found = AutoTokenizer.from_pretrained(folder)(text, split_special_tokens=True)
    ids: list[int] = found.input_ids
    return ids


def added(value: dict[str, Any], *contents: str, special: bool = False) -> None:
    first = 1 + max(token["id"] for token in value["added_tokens"])
    value["added_tokens"] += [
        {"id": first + i, "content": content, **SPECIAL, "special": special}
        for i, content in enumerate(contents)
    ]


def add_tokens(folder: Path, value: dict[str, Any], config: dict[str, Any]) -> None:
    added(value, "naïve", "Café")
    added(value, "<|user|>", special=True)


def lower_the_case(folder: Path, value: dict[str, Any], config: dict[str, Any]) -> None:
    value["normalizer"] = {"type": "Lowercase"}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"


def list_added_tokens_and_add_a_space(
    folder: Path, value: dict[str, Any], config: dict[str, Any]
) -> None:
    (folder / "added_tokens.json").write_text('{"<|user|>": 50257, "naïve café": 50258}')
    config["add_prefix_space"] = True


def describe_added_tokens(folder: Path, value: dict[str, Any], config: dict[str, Any]) -> None:
    plain = {**SPECIAL, "special": False}
    config["added_tokens_decoder"] = {
        "50258": {"content": "Café", **plain, "lstrip": True},
        "50257": {"content": "<|user|>", **SPECIAL},
    }


def written(folder: Path, change: Change) -> None:
    value = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    change(folder, value, config)
    (folder / "tokenizer.json").write_text(json.dumps(value), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


@pytest.mark.parametrize("change", [add_tokens, lower_the_case, list_added_tokens_and_add_a_space])
def test_a_variant_of_gpt2_is_not_gpt2(gpt2: Path, change: Change) -> None:
    written(gpt2, change)
    made = huggingface_files.read(gpt2)
    assert made is not None
    assert (made.kind, made.eot) == ("hf", 50256)
    assert made.encode(TEXT) == ids_of_transformers(gpt2, TEXT)


@pytest.mark.parametrize("change", [list_added_tokens_and_add_a_space, describe_added_tokens])
def test_tokens_added_to_vocab_json_and_merges(gpt2: Path, change: Change) -> None:
    written(gpt2, change)
    (gpt2 / "tokenizer.json").unlink()
    made = factory.load(gpt2)
    assert (made.vocab_size, made.eot) == (50259, 50256)
    ids = made.encode(TEXT)
    assert ids == ids_of_transformers(gpt2, TEXT)
    assert factory.from_json(made.to_json()).encode(TEXT) == ids  # as a checkpoint keeps it


def test_anything_that_changes_ids_or_text_makes_another_tokenizer(gpt2: Path) -> None:
    value = json.loads((gpt2 / "tokenizer.json").read_text("utf-8"))
    assert huggingface_files._recognise(value) is not None
    [end] = value["added_tokens"]
    adding = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}
    for key, other in (
        ("pre_tokenizer", value["pre_tokenizer"] | {"add_prefix_space": True}),
        ("pre_tokenizer", value["pre_tokenizer"] | {"use_regex": False}),
        ("normalizer", {"type": "NFC"}),
        ("decoder", {"type": "Fuse"}),
        ("post_processor", adding),
        ("added_tokens", []),
        ("added_tokens", [{**end, "special": False}]),
        ("added_tokens", [{**end, "rstrip": True}]),
        ("added_tokens", [end, {**end, "id": 50257, "content": "<|user|>"}]),
        ("model", value["model"] | {"ignore_merges": True}),
        ("model", value["model"] | {"vocab": {**value["model"]["vocab"], "<|user|>": 50257}}),
    ):
        assert huggingface_files._recognise({**value, key: other}) is None, (key, other)


def as_published(folder: Path, value: dict[str, Any], config: dict[str, Any]) -> None:
    """The form of openai-community/gpt2: other spellings of the same."""
    value["added_tokens"][0]["normalized"] = True
    del value["pre_tokenizer"]["use_regex"]
    value["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    value["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    value["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    for name in ("type", "byte_fallback", "ignore_merges"):
        del value["model"][name]


def in_pairs(folder: Path, value: dict[str, Any], config: dict[str, Any]) -> None:
    """As versions of the library since 2024 write merges, and a template that adds nothing."""
    value["model"]["merges"] = [line.split(" ") for line in value["model"]["merges"]]
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    value["post_processor"] = {
        "type": "TemplateProcessing", "special_tokens": {},
        "single": [sequence], "pair": [sequence],
    }  # fmt: skip


def test_gpt2s_own_file_is_gpt2(gpt2: Path) -> None:
    fingerprint = factory.get("gpt2").fingerprint()
    assert factory.load(gpt2).fingerprint() == fingerprint
    for change in (as_published, in_pairs):
        written(gpt2, change)
        value = json.loads((gpt2 / "tokenizer.json").read_text("utf-8"))
        assert isinstance(huggingface_files._recognise(value), TiktokenTokenizer), change
    (gpt2 / "tokenizer.json").unlink()
    assert factory.load(gpt2).fingerprint() == fingerprint


@pytest.mark.parametrize(
    "tokenizer",
    [
        CharTokenizer("abc é"),
        CharTokenizer("ab", eot=True),
        ByteTokenizer(),
        ByteTokenizer(eot=True),
    ],
)
def test_native_vocabularies_are_recognised_unless_something_differs(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    value = huggingface_files.to_json(tokenizer)
    path = tmp_path / "tokenizer.json"
    assert huggingface_files.from_value(value, path).fingerprint() == tokenizer.fingerprint()
    new = {"id": tokenizer.vocab_size, "content": "<new>", **SPECIAL}
    for key, other in (
        ("normalizer", {"type": "Lowercase"}),
        ("added_tokens", [*value["added_tokens"], new]),
        ("decoder", None),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("model", value["model"] | {"unk_token": "a"}),
    ):
        made = huggingface_files.from_value({**value, key: other}, path)
        assert made.kind == "hf", key


def test_a_file_of_another_name_stands_alone(tmp_path: Path) -> None:
    value = huggingface_files.to_json(CharTokenizer("ab"))
    del value["added_tokens"]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(value))
    (tmp_path / "added_tokens.json").write_text('{"<a>": 2}')
    assert factory.load(path).fingerprint() == CharTokenizer("ab").fingerprint()


@pytest.mark.parametrize("family", ["unigram", "wordpiece", "byte-level, added tokens"])
def test_every_family_keeps_its_ids_in_a_folder(tmp_path: Path, family: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(families.tokenizer_json(family)), "utf-8")
    made = factory.get(str(tmp_path))
    assert made.encode(TEXT) == families.library(family).encode(TEXT, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("added_tokens.json", '{"<a>": "7"}', "added_tokens.json"),
        ("added_tokens.json", '{"<a>": 70000}', "<a>"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}', "decoder"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"50257": 5}}', "50257"),
    ],
)
def test_broken_neighbours_are_refused_by_name(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(families.tokenizer_json("byte-level")))
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        huggingface_files.read(tmp_path)


def test_a_tokenizer_without_a_limit_as_transformers_saves_it(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    source = tmp_path / "made.json"
    source.write_text(json.dumps(families.tokenizer_json("byte-level")))
    PreTrainedTokenizerFast(tokenizer_file=str(source)).save_pretrained(tmp_path / "saved")
    assert str(int(1e30)) in (tmp_path / "saved" / "tokenizer_config.json").read_text()
    made = huggingface_files.read(tmp_path / "saved")
    assert made is not None
    assert made.encode(TEXT) == ids_of_transformers(tmp_path / "saved", TEXT)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    assert huggingface_files.read(tmp_path) is None
    with pytest.raises(UserError, match="holds no tokenizer"):
        factory.load(tmp_path)
