"""Creating tokenizers of every kind: by name, from JSON and from files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from nanogpt_cli import files, foreign_files, typed_tables
from nanogpt_cli.errors import UserError, naming, nearest
from nanogpt_cli.text.tokenizers import huggingface_files
from nanogpt_cli.text.tokenizers.bpe import HuggingFaceTokenizer, trained_size
from nanogpt_cli.text.tokenizers.huggingface_files import TOKENIZER, VOCABULARY
from nanogpt_cli.text.tokenizers.tiktoken_bpe import KINDS, TiktokenTokenizer
from nanogpt_cli.text.tokenizers.tokenizer import FORMAT, ByteTokenizer, CharTokenizer, Tokenizer
from nanogpt_cli.typed_tables import Count, Table
from nanogpt_cli.user_input import expanded

NAMED: Final = ("char", "byte", *KINDS)


def get(kind: str, *, eot: bool = False) -> Tokenizer:
    """The tokenizer ``kind`` that needs no data.

    Args:
        kind: ``byte``, one of ``KINDS``, or a path as in ``load``.
        eot: give ``byte`` an end-of-text id; the other vocabularies have their own or none.

    Raises:
        UserError: ``kind`` is unknown, cannot be fetched, or lacks the end of text asked for.
    """
    if kind == "byte" or kind in KINDS:
        return _named(kind, eot)
    if is_path(kind):
        found = load(expanded(kind))
        if eot and found.eot is None:
            raise UserError(
                f"the tokenizer of {kind} has no end-of-text token, and --eot cannot add one",
                "leave --eot out, or use a tokenizer that has one",
            )
        return found
    check_kind(kind)
    raise UserError(
        f"tokenizer {kind!r} is made from data", "prepare a data set and name its folder instead"
    )


@functools.lru_cache(maxsize=4)
def _named(kind: str, eot: bool) -> Tokenizer:
    return ByteTokenizer(eot=eot) if kind == "byte" else TiktokenTokenizer(kind)


def is_path(kind: str) -> bool:
    """Whether ``kind`` is not a name but where a tokenizer lies."""
    if kind in NAMED or trained_size(kind) is not None:
        return False
    return kind.endswith(".json") or foreign_files.present(expanded(kind))


def check_kind(kind: str) -> None:
    """Raise ``UserError`` unless ``kind`` names a tokenizer that ``prepare`` can use."""
    size = trained_size(kind)
    if size is not None and not 257 <= size <= 1_000_000:
        raise UserError(
            f"tokenizer {kind!r}: the size must lie in 257 .. 1000000",
            "256 bytes and the end-of-text token come first; bpe:4096 is a good small size",
        )
    if is_path(kind):
        file_of(expanded(kind))
    elif size is None and kind not in NAMED:
        near = nearest(kind, (*NAMED, "bpe:4096"))
        raise UserError(
            f"unknown tokenizer {kind!r}" + (f"; did you mean {near!r}?" if near else ""),
            f"known: char, byte, bpe:SIZE, {', '.join(KINDS)}, or the path of a tokenizer.json, "
            "a run, a prepared data set or a Hugging Face folder",
        )


def file_of(path: Path) -> Path:
    """The tokenizer's file at ``path``: that file, or the one in a folder.

    Args:
        path: a tokenizer.json, a run or one of its checkpoints, a prepared data set, or a Hugging
            Face folder.

    Raises:
        UserError: there is none.
    """
    if not path.is_dir():
        foreign_files.check(path)
        return path
    steps = sorted(path.glob(f"checkpoints/step-*/{TOKENIZER}"))  # all of a run's are equal
    for found in (
        path / TOKENIZER,
        path / VOCABULARY,
        *steps[-1:],
    ):
        if foreign_files.present(found):
            return found
    raise UserError(
        f"{path} holds no tokenizer",
        f"name a {TOKENIZER}, a run with a checkpoint, a prepared set or a Hugging Face folder",
    )


def from_json(value: dict[str, Any], source: str = "the tokenizer") -> Tokenizer:
    """The tokenizer of ``Tokenizer.to_json``.

    Args:
        value: the content of the file.
        source: the file, for messages about errors when it is used.

    Raises:
        UserError: the value is of another kind or incomplete.
    """
    if value.get("format") != FORMAT:
        raise UserError("this JSON is not a tokenizer", f'"format" must be "{FORMAT}"')
    try:
        typed_tables.check(_Head, value)
        made = _made(value, source)
    except ValueError as error:
        raise UserError(f"this tokenizer is damaged: {error}") from None
    for key in ("vocab_size", "eot"):
        # An earlier version may have found no end of text where this one does.
        if value.get(key) is not None and value[key] != getattr(made, key):
            raise UserError(
                f"this tokenizer is damaged: {key} is {value[key]}, that of its tokens "
                f"{getattr(made, key)}"
            )
    return made


class _Head(Table):
    kind: str
    vocab_size: Count = 0
    eot: Count | None = None


class _Characters(Table):
    characters: list[Annotated[str, Field(min_length=1, max_length=1)]]


class _Library(Table):
    huggingface: dict[str, Any]
    eot: Count | None


def _made(value: dict[str, Any], source: str) -> Tokenizer:
    """The tokenizer of ``from_json``, whose head is checked; ``ValueError`` for other values."""
    kind = value["kind"]
    if kind == "char":
        typed_tables.check(_Characters, value)
        return CharTokenizer(value["characters"], eot=value.get("eot") is not None)
    if "huggingface" in value:
        typed_tables.check(_Library, value)
        return HuggingFaceTokenizer(
            value["huggingface"], kind=kind, eot=value["eot"], source=source
        )
    if kind not in ("byte", *KINDS):
        raise ValueError(f"kind: {kind!r:.80} is unknown, or its vocabulary is missing")
    return _named(kind, value.get("eot") is not None)


def load(path: Path) -> Tokenizer:
    """Read a tokenizer from a file or folder as in ``file_of``: ours, or a Hugging Face one.

    Raises:
        UserError: the file is missing or is not a tokenizer.
    """
    path = file_of(path)
    value = huggingface_files.read_value(path)
    if "model" in value and "format" not in value:
        return huggingface_files.from_value(value, path)
    with naming(path):
        return from_json(value, str(path))


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write ``tokenizer`` as JSON, atomically."""
    files.write_json(path, tokenizer.to_json())
