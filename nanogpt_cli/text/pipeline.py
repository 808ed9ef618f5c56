"""From pieces of documents to tokens: grouped into tasks, encoded on all cores, in order."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from nanogpt_cli.errors import UserError
from nanogpt_cli.text import cuts
from nanogpt_cli.text.documents import Piece
from nanogpt_cli.text.parallel import ordered_map
from nanogpt_cli.text.reading import CODEC_POLICY
from nanogpt_cli.text.tokenizer import SAME_BYTES, Tokenizer, Tokens

if TYPE_CHECKING:
    from hashlib import _Hash

TRAIN: Final = 0
VAL: Final = 1
_DIGEST = 8  # bytes: among a billion documents two unequal ones meet with probability 0.03


@dataclass
class Task:
    """Pieces that are encoded together, and what is known of the documents they end.

    Attributes:
        pieces: in order.
        sides: for each piece the split it goes to.
        digests: for each piece the 64-bit hash of the document it ends, else None.
    """

    pieces: list[Piece] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    digests: list[int | None] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True)
class Encoded:
    """A task's tokens.

    Attributes:
        tokens: of the train and the val side, in order.
        counts: how often each id stands in both, shape (highest id + 1,).
        lengths: tokens of each piece, without end-of-text tokens.
        characters: Unicode characters of each piece.
        bytes: UTF-8 bytes of each piece's text, after repair.
        broken: bytes of all pieces that were no UTF-8 and were replaced or left out.
    """

    task: Task
    tokens: tuple[Tokens, Tokens]
    counts: Tokens
    lengths: list[int]
    characters: list[int]
    bytes: list[int]
    broken: int


def digest(data: bytes) -> int:
    """The first 64 bits of sha256 of ``data``: the same in every run, on every machine."""
    return _shortened(hashlib.sha256(data))


def _shortened(hasher: _Hash) -> int:
    return int.from_bytes(hasher.digest()[:_DIGEST], "little")


def goes_to_val(start: int, val_fraction: float) -> bool:
    """The side a document takes by ``start``, the digest of its first 64 KiB.

    It depends on nothing else, so adding documents moves none, and equal documents stay together.
    """
    return start < val_fraction * 2.0 ** (8 * _DIGEST)


def group(pieces: Iterable[Piece], *, val_fraction: float | None) -> Iterator[Task]:
    """Collect pieces into tasks of about half a megabyte and hash the documents on the way.

    Args:
        pieces: of documents, in order. Documents without any byte are dropped.
        val_fraction: split by the documents' hashes; None leaves everything on the train side.
    """
    task, side, hasher = Task(), TRAIN, None
    for piece in pieces:
        ended = None
        if hasher is None:
            if piece.last and not piece.data:
                continue
            start = digest(piece.data[: cuts.HEAD])
            side = VAL if val_fraction is not None and goes_to_val(start, val_fraction) else TRAIN
            if piece.last and len(piece.data) <= cuts.HEAD:
                ended = start
            else:
                hasher = piece.digest or hashlib.sha256()
        if hasher is not None:
            if piece.digest is None:
                hasher.update(piece.data)
            if piece.last:
                ended, hasher = _shortened(hasher), None
        task.pieces.append(piece)
        task.sides.append(side)
        task.digests.append(ended)
        task.size += len(piece.data)
        if task.size >= cuts.BLOCK // 2 or len(task.pieces) >= 4096:
            yield task
            task = Task()
    if task.pieces:
        yield task


def piece_text(piece: Piece, errors: str) -> str:
    """The text of a piece. Raises ``UserError`` naming file and byte under ``strict``."""
    try:
        return piece.data.decode("utf-8", CODEC_POLICY[errors])
    except UnicodeDecodeError as error:
        wrong = piece.data[error.start]
        hint = "use --errors replace or skip, or name the file's --encoding (e.g. latin-1)"
        marked = piece.data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if marked or 4 * piece.data.count(0) > len(piece.data):
            hint = "this looks like UTF-16: use --encoding utf-16"
        raise UserError(
            f"{piece.name}: invalid UTF-8 at byte {piece.place + error.start:,} "
            f"(0x{wrong:02x}: {error.reason})",
            hint,
        ) from error


def encode_task(task: Task, tokenizer: Tokenizer, errors: str) -> Encoded:
    """Encode a task's pieces; an end-of-text token follows each document where there is one."""
    sides: tuple[list[Tokens], list[Tokens]] = ([], [])
    lengths, characters, sizes, broken = [], [], [], 0
    end = None if tokenizer.eot is None else np.array([tokenizer.eot], dtype=tokenizer.dtype)
    for piece, side in zip(task.pieces, task.sides, strict=True):
        ids, count, size = _encode_piece(piece, tokenizer, errors)
        sides[side].append(ids)
        if piece.last and end is not None:
            sides[side].append(end)
        lengths.append(len(ids))
        characters.append(count)
        sizes.append(size)
        if errors != "strict":
            broken += _broken_bytes(piece.data)
    counts = _histogram([*sides[TRAIN], *sides[VAL]])
    tokens = (_joined(sides[TRAIN], tokenizer), _joined(sides[VAL], tokenizer))
    return Encoded(task, tokens, counts, lengths, characters, sizes, broken)


def _broken_bytes(data: bytes) -> int:
    """How many bytes are no UTF-8."""
    return 0 if data.isascii() else len(data) - len(data.decode("utf-8", "ignore").encode())


def _encode_piece(piece: Piece, tokenizer: Tokenizer, errors: str) -> tuple[Tokens, int, int]:
    """A piece's ids, characters and bytes."""
    table = tokenizer.ascii_ids
    if table is not None and piece.data.isascii():
        # Each byte has its id: no text is made of them.
        ids = piece.data if table == SAME_BYTES else piece.data.translate(table)
        return np.frombuffer(ids, dtype=np.uint8), len(ids), len(ids)
    text = piece_text(piece, errors)
    size = len(piece.data) if errors == "strict" else len(text.encode("utf-8"))
    return tokenizer.encode_array(text), len(text), size


def _joined(arrays: list[Tokens], tokenizer: Tokenizer) -> Tokens:
    if not arrays:
        return np.empty(0, dtype=tokenizer.dtype)
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return joined.astype(tokenizer.dtype, copy=False)


def _histogram(arrays: list[Tokens]) -> Tokens:
    """How often each id stands in all arrays, shape (highest id + 1,)."""
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
