"""Creating tokenizers of every kind: by name, from JSON and from files."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, Final

from nanogpt_cli import files, foreign_files
from nanogpt_cli.errors import UserError, naming, nearest
from nanogpt_cli.text.bpe import HuggingFaceTokenizer, TiktokenTokenizer
from nanogpt_cli.text.tokenizer import FORMAT, ByteTokenizer, CharTokenizer, Tokenizer
from nanogpt_cli.user_input import whole

TIKTOKEN_KINDS: Final = (
    "gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base", "o200k_harmony",
)  # fmt: skip
_BPE_KIND = re.compile(r"bpe:([0-9]+)")


@functools.lru_cache(maxsize=4)
def get(kind: str, *, eot: bool = False) -> Tokenizer:
    """The tokenizer ``kind`` that needs no data: ``byte``, a tiktoken encoding, or a file's path.

    Args:
        kind: ``byte``, one of ``TIKTOKEN_KINDS``, or the path of a Hugging Face ``tokenizer.json``.
        eot: give ``byte`` an end-of-text id; BPE vocabularies have their own.

    Raises:
        UserError: ``kind`` is unknown, or its vocabulary cannot be fetched.
    """
    if kind == "byte":
        return ByteTokenizer(eot=eot)
    if kind in TIKTOKEN_KINDS:
        return TiktokenTokenizer(kind)
    if kind.endswith(".json") or foreign_files.present(Path(kind)):
        return read_huggingface(Path(kind))
    check_kind(kind)
    raise UserError(
        f"tokenizer {kind!r} is made from data", "prepare a data set and load its tokenizer.json"
    )


def trained_size(kind: str) -> int | None:
    """The vocabulary size asked for by ``bpe:SIZE``; None for any other kind."""
    match = _BPE_KIND.fullmatch(kind)
    return whole(match[1]) if match else None


def check_kind(kind: str) -> None:
    """Raise ``UserError`` unless ``kind`` names a tokenizer that ``prepare`` can use."""
    size = trained_size(kind)
    if size is not None and not 257 <= size <= 1_000_000:
        raise UserError(
            f"tokenizer {kind!r}: the size must lie in 257 .. 1000000",
            "256 bytes and the end-of-text token come first; bpe:4096 is a good small size",
        )
    if size is None and kind not in ("char", "byte", *TIKTOKEN_KINDS):
        path = Path(kind)
        folder = path.is_dir()
        if foreign_files.present(path / "tokenizer.json" if folder else path):
            return  # reading it later says whether it is a tokenizer
        near = nearest(kind, ("char", "byte", "bpe:4096", *TIKTOKEN_KINDS))
        raise UserError(
            f"unknown tokenizer {kind!r}" + (f"; did you mean {near!r}?" if near else ""),
            f"known: char, byte, bpe:SIZE, {', '.join(TIKTOKEN_KINDS)}, "
            "or the path of a Hugging Face tokenizer.json",
        )


def from_json(value: dict[str, Any], source: str = "the tokenizer") -> Tokenizer:
    """The tokenizer of ``Tokenizer.to_json``, or of a Hugging Face ``tokenizer.json``.

    Args:
        value: the content of the file.
        source: the file, for messages about errors when it is used.

    Raises:
        UserError: the value is neither.
    """
    if "model" in value and "format" not in value:
        return HuggingFaceTokenizer(value, source=source)
    kind = value.get("kind")
    if value.get("format") != FORMAT or not isinstance(kind, str):
        raise UserError("this JSON is not a tokenizer", f'"format" must be "{FORMAT}"')
    try:
        if kind == "char":
            return CharTokenizer(value["characters"], eot=value.get("eot") is not None)
        if "huggingface" in value:
            return HuggingFaceTokenizer(
                value["huggingface"], kind=kind, eot=value["eot"], source=source
            )
        return get(kind, eot=value.get("eot") is not None)
    except (KeyError, TypeError) as error:
        raise UserError(f"tokenizer of kind {kind!r} is incomplete: {error}") from error


def load(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``: ours, or a Hugging Face one.

    Raises:
        UserError: the file is missing or is not a tokenizer.
    """
    value = foreign_files.read_object(path, foreign_files.LARGEST_VOCABULARY)
    with naming(path):
        return from_json(value, str(path))


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write ``tokenizer`` as JSON, atomically."""
    files.write_json(path, tokenizer.to_json())


def read_huggingface(path: Path) -> HuggingFaceTokenizer:
    """The tokenizer in a ``tokenizer.json`` (or in a folder that holds one)."""
    found = load(path / "tokenizer.json" if path.is_dir() else path)
    if not isinstance(found, HuggingFaceTokenizer):
        raise UserError(f"{path} holds a {found.kind!r} tokenizer", f"use --tokenizer {found.kind}")
    return found
