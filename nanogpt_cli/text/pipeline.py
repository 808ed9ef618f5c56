"""From chunks of documents to tokens: grouped into tasks, encoded on all cores, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from nanogpt_cli.errors import UserError
from nanogpt_cli.text.parallel import ordered_map
from nanogpt_cli.text.sources.decoding import CODEC_POLICY
from nanogpt_cli.text.sources.documents import OTHER_ENCODING, Chunk
from nanogpt_cli.text.tokenizers import cuts
from nanogpt_cli.text.tokenizers.tokenizer import SAME_BYTES, Tokenizer, Tokens, UnknownCharacters

if TYPE_CHECKING:
    from hashlib import _Hash

TRAIN: Final = 0
VAL: Final = 1
_DIGEST = 8  # bytes: the probability of a collision among a billion documents is 0.03


@dataclass
class Task:
    """Chunks that are encoded together, with the split and hash of their documents.

    Attributes:
        chunks: the chunks, in order.
        sides: the split that each chunk goes to.
        digests: for a document's last chunk the document's 64-bit hash, else None.
    """

    chunks: list[Chunk] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    digests: list[int | None] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True)
class Encoded:
    """A task's tokens.

    Attributes:
        tokens: those of the train split and those of the validation split, in order.
        counts: how often each id occurs in both, shape (highest id + 1,).
        lengths: tokens of each chunk, without end-of-text tokens.
        characters: Unicode characters of each chunk.
        bytes: UTF-8 bytes of each chunk's text, after repair.
        broken: bytes that were not UTF-8 and were replaced or left out, over all chunks.
        returns: carriage returns, over all chunks.
    """

    task: Task
    tokens: tuple[Tokens, Tokens]
    counts: Tokens
    lengths: list[int]
    characters: list[int]
    bytes: list[int]
    broken: int
    returns: int


def digest(data: bytes) -> int:
    """The first 64 bits of sha256 of ``data``: the same in every run, on every machine."""
    return _shortened(hashlib.sha256(data))


def _shortened(hasher: _Hash) -> int:
    return int.from_bytes(hasher.digest()[:_DIGEST], "little")


def goes_to_val(start: int, val_fraction: float) -> bool:
    """Whether a document is for validation, by ``start``, the digest of its first 64 KiB.

    Nothing else matters, so that adding documents moves none, and equal ones stay together.
    """
    return start < val_fraction * 2.0 ** (8 * _DIGEST)


def group(chunks: Iterable[Chunk], *, val_fraction: float | None) -> Iterator[Task]:
    """Collect chunks into tasks of about half a megabyte and hash the documents on the way.

    Args:
        chunks: the documents' chunks, in order. Empty documents are dropped.
        val_fraction: share to split off by the documents' hashes; None puts all into train.
    """
    task, side, hasher = Task(), TRAIN, None
    for chunk in chunks:
        ended = None
        if hasher is None:
            if chunk.last and not chunk.data:
                continue
            start = digest(chunk.data[: cuts.HEAD])
            side = VAL if val_fraction is not None and goes_to_val(start, val_fraction) else TRAIN
            if chunk.last and len(chunk.data) <= cuts.HEAD:
                ended = start
            else:
                hasher = chunk.digest or hashlib.sha256()
        if hasher is not None:
            if chunk.digest is None:
                hasher.update(chunk.data)
            if chunk.last:
                ended, hasher = _shortened(hasher), None
        task.chunks.append(chunk)
        task.sides.append(side)
        task.digests.append(ended)
        task.size += len(chunk.data)
        if task.size >= cuts.BLOCK // 2 or len(task.chunks) >= 4096:
            yield task
            task = Task()
    if task.chunks:
        yield task


def chunk_text(chunk: Chunk, errors: str) -> str:
    """The text of a chunk. Raises ``UserError`` naming file and byte under ``strict``."""
    try:
        return chunk.data.decode("utf-8", CODEC_POLICY[errors])
    except UnicodeDecodeError as error:
        wrong = chunk.data[error.start]
        raise UserError(
            f"{chunk.name}: invalid UTF-8 at byte {chunk.place + error.start:,} "
            f"(0x{wrong:02x}: {error.reason})",
            OTHER_ENCODING,
        ) from error


def encode_task(task: Task, tokenizer: Tokenizer, errors: str) -> Encoded:
    """Encode a task's chunks, with an end-of-text token (if there is one) after each document."""
    sides: tuple[list[Tokens], list[Tokens]] = ([], [])
    lengths, characters, sizes, broken = [], [], [], 0
    end = None if tokenizer.eot is None else np.array([tokenizer.eot], dtype=tokenizer.dtype)
    for chunk, side in zip(task.chunks, task.sides, strict=True):
        ids, count, size = _encode_chunk(chunk, tokenizer, errors)
        sides[side].append(ids)
        if chunk.last and end is not None:
            sides[side].append(end)
        lengths.append(len(ids))
        characters.append(count)
        sizes.append(size)
        if errors != "strict":
            broken += _broken_bytes(chunk.data)
    counts = _histogram([*sides[TRAIN], *sides[VAL]])
    tokens = (_joined(sides[TRAIN], tokenizer), _joined(sides[VAL], tokenizer))
    # Searching takes a tenth of the time that counting does.
    returns = sum(chunk.data.count(b"\r") for chunk in task.chunks if b"\r" in chunk.data)
    return Encoded(task, tokens, counts, lengths, characters, sizes, broken, returns)


def _broken_bytes(data: bytes) -> int:
    """How many bytes are not valid UTF-8."""
    return 0 if data.isascii() else len(data) - len(data.decode("utf-8", "ignore").encode())


def _encode_chunk(chunk: Chunk, tokenizer: Tokenizer, errors: str) -> tuple[Tokens, int, int]:
    """A chunk's ids, characters and bytes."""
    table = tokenizer.ascii_ids
    if table is not None and chunk.data.isascii():
        # Each byte maps to an id, so that no string has to be decoded.
        ids = chunk.data if table == SAME_BYTES else chunk.data.translate(table)
        return np.frombuffer(ids, dtype=np.uint8), len(ids), len(ids)
    text = chunk_text(chunk, errors)
    size = len(chunk.data) if errors == "strict" else len(text.encode("utf-8"))
    try:
        return tokenizer.encode_array(text), len(text), size
    except UnknownCharacters as error:  # the vocabulary was made from another text
        raise UserError(
            f"{chunk.name}: the tokenizer's {tokenizer.vocab_size} characters do not include "
            f"{error.lacking}",
            "take them out of the text, or use a byte or BPE tokenizer",
        ) from None


def _joined(arrays: list[Tokens], tokenizer: Tokenizer) -> Tokens:
    if not arrays:
        return np.empty(0, dtype=tokenizer.dtype)
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return joined.astype(tokenizer.dtype, copy=False)


def _histogram(arrays: list[Tokens]) -> Tokens:
    """How often each id occurs in all arrays together, shape (highest id + 1,)."""
    ids = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if ids.dtype != np.uint8:
        return np.bincount(ids)
    # Counting pairs of bytes and summing over either half takes half the time.
    even = len(ids) // 2 * 2
    pairs = np.bincount(ids[:even].view("<u2"), minlength=1 << 16).reshape(256, 256)
    counts: Tokens = pairs.sum(axis=0) + pairs.sum(axis=1)
    return counts + np.bincount(ids[even:], minlength=256)


def encode_all(
    tasks: Iterable[Task], tokenizer: Tokenizer, *, errors: str, workers: int
) -> Generator[Encoded]:
    """Encode tasks on ``workers`` threads, in order; memory is bounded by what is in flight."""
    return ordered_map(lambda task: encode_task(task, tokenizer, errors), tasks, workers)
