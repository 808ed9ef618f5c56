"""Inspecting a prepared data set: sample windows, and how often each token occurs."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from nanogpt_cli import files, foreign_files, places
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import storable
from nanogpt_cli.text import tokens
from nanogpt_cli.text.tokenizers.stream import text_of
from nanogpt_cli.text.tokenizers.tokenizer import Tokens
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.user_input import expanded

_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class Window:
    """A stretch of tokens of one split, and its text.

    Attributes:
        start: position of the first token in the split.
        text: the decoded text; a character cut at either end becomes U+FFFD.
    """

    split: str
    start: int
    text: str


def windows(data: TokenData, *, count: int, length: int, seed: int = 0) -> list[Window]:
    """``count`` windows of ``length`` tokens from each split, at positions drawn by ``seed``."""
    found = []
    for split in tokens.SPLITS:
        ids = getattr(data, split)
        for slot in range(count):
            mark = hashlib.sha256(f"{seed} {split} {slot}".encode()).digest()
            start = int.from_bytes(mark[:8], "little") % max(1, len(ids) - length + 1)
            text = text_of(data.tokenizer, ids[start : start + length].tolist())
            found.append(Window(split, start, text))
    return found


def histogram(ids: Tokens, vocab_size: int) -> Tokens:
    """How often each id occurs in ``ids``: int64, shape (vocab_size,); memory stays bounded.

    Raises:
        UserError: an id lies outside the vocabulary.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(ids), _BLOCK):
        found = np.bincount(ids[start : start + _BLOCK])
        if len(found) > vocab_size:
            raise UserError(
                f"the data holds the id {len(found) - 1}; the vocabulary has {vocab_size:,} ids"
            )
        counts[: len(found)] += found
    return counts


def entropy_bits(counts: Tokens) -> float:
    """Shannon entropy of the token frequencies, in bits a token: the loss of a unigram model."""
    p = counts[counts > 0] / max(1, counts.sum())
    return float(-(p * np.log2(p)).sum())


def prepared_folders() -> list[Path]:
    """Every prepared set in ``./data`` and in the cache; those that are being written are none."""
    folders = [places.DATA, places.cache_home() / "data"]
    found = [foreign_files.entries(folder) for folder in folders]
    named = [p for paths in found for p in paths if not p.name.startswith(files.TEMPORARY_PREFIX)]
    return [path for path in named if path.is_dir() and tokens.is_prepared(path)]


def newest_of(path: Path) -> Path | None:
    """The newest of the prepared sets that were made from this one file or folder."""
    wanted = [storable(str(expanded(str(path)).absolute()))]
    found = []
    for folder in prepared_folders():
        with contextlib.suppress(UserError):  # a damaged set says nothing about this text
            if tokens.read_manifest(folder).raw["request"].get("inputs") == wanted:
                found.append(folder)
    return max(found, key=written, default=None)


def written(folder: Path) -> int:
    """When a prepared set was written, in nanoseconds since the epoch."""
    return (folder / tokens.MANIFEST).stat().st_mtime_ns
