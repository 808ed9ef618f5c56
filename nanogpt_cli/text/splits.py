"""The two ways of splitting text into train and validation, each in one pass."""

from __future__ import annotations

import bisect
import contextlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from nanogpt_cli.text.pipeline import TRAIN, VAL, Encoded
from nanogpt_cli.text.token_file import TokenFile
from nanogpt_cli.text.tokenizer import Tokenizer, Tokens

_COPY: Final = 1 << 22
DOCUMENT = np.dtype([("digest", "<u8"), ("place", "<u8")])


@dataclass
class Counts:
    """The contents of one split in numbers; see ``tokens.SplitInfo``."""

    tokens: int = 0
    bytes: int = 0
    characters: int = 0
    documents: int = 0

    def add(self, characters: int, size: int) -> None:
        """Count a chunk of text."""
        self.characters += characters
        self.bytes += size


class SplitWriter:
    """Writes encoded tasks to ``train.bin`` and ``val.bin`` in ``folder``, by document.

    Each document's hash and side go to the spool ``documents.tmp``, for the receipt.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.sides = (Counts(), Counts())
        self.counts: Tokens = np.zeros(0, dtype=np.int64)
        self.exact = True
        self.files = (TokenFile(folder / "train.bin"), TokenFile(folder / "val.bin"))
        self.documents: BinaryIO = (folder / "documents.tmp").open("wb")

    def add(self, encoded: Encoded) -> None:
        """Write one task's tokens."""
        for side in (TRAIN, VAL):
            self.files[side].write(encoded.tokens[side])
            self.sides[side].tokens += len(encoded.tokens[side])
        rows = zip(encoded.task.sides, encoded.characters, encoded.bytes, strict=True)
        for side, characters, size in rows:
            self.sides[side].add(characters, size)
        self._add_documents(encoded)
        self.counts = _sum(self.counts, encoded.counts)

    def _add_documents(self, encoded: Encoded) -> None:
        task = encoded.task
        ended = [(d, s) for d, s in zip(task.digests, task.sides, strict=True) if d is not None]
        self.documents.write(np.array(ended, dtype=DOCUMENT).tobytes())
        for _, side in ended:
            self.sides[side].documents += 1

    def close(self, val_fraction: float) -> None:
        """Flush the files; they are complete afterwards."""
        del val_fraction
        for file in (*self.files, self.documents):
            file.close()

    def abandon(self) -> None:
        """Close the files as they are and ignore errors of the disk."""
        for file in self.files:
            file.abandon()
        with contextlib.suppress(OSError):
            self.documents.close()

    def sha256(self, side: int) -> str:
        """The hex digest of a side's file; after ``close``."""
        return self.files[side].sha256()


class TailWriter(SplitWriter):
    """Writes everything to ``train.bin`` and at the end moves the last part to ``val.bin``.

    The cut is before character ``int(n * (1 - val_fraction))`` of the whole text, and both parts
    are as if they had been encoded alone. This is nanoGPT's split, without knowing n in advance.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        super().__init__(folder, tokenizer)
        # After each task: characters, tokens and bytes so far.
        self._ends = (array("Q", [0]), array("Q", [0]), array("Q", [0]))
        self._unchanged = 0  # bytes of train.bin before the task that was cut
        self._open_document = 0  # the character with which the current document began

    def add(self, encoded: Encoded) -> None:
        """Write one task's tokens and remember where it ended."""
        super().add(encoded)
        train = self.sides[TRAIN]
        for ends, value in zip(
            self._ends, (train.characters, train.tokens, train.bytes), strict=True
        ):
            ends.append(value)

    def _add_documents(self, encoded: Encoded) -> None:
        position = self.sides[TRAIN].characters - sum(encoded.characters)
        rows = []
        for found, characters in zip(encoded.task.digests, encoded.characters, strict=True):
            position += characters
            if found is not None:
                rows.append((found, self._open_document))
                self._open_document = position
        self.documents.write(np.array(rows, dtype=DOCUMENT).tobytes())

    def close(self, val_fraction: float) -> None:
        """Move the tail to ``val.bin``; counts and document sides are exact afterwards."""
        super().close(val_fraction)
        path = self.folder / "train.bin"
        self._drop_last_end(path)
        cut = int(self.sides[TRAIN].characters * (1 - val_fraction))
        # The last task that begins at or before the cut.
        task = max(0, min(bisect.bisect_right(self._ends[0], cut), len(self._ends[0]) - 1) - 1)
        if self.sides[TRAIN].characters:
            with path.open("rb+") as train, (self.folder / "val.bin").open("wb") as val:
                self._cut(train, val, task, cut)
        self._settle_documents(cut)

    def sha256(self, side: int) -> str:
        """See ``SplitWriter``."""
        return self.files[side].sha256(self._unchanged if side == TRAIN else 0)

    def _drop_last_end(self, path: Path) -> None:
        # End-of-text tokens separate documents, so that none follows the last document.
        eot, ends = self.tokenizer.eot, self._ends[1]
        if eot is None or not ends[-1]:
            return
        with path.open("rb+") as file:
            file.truncate((ends[-1] - 1) * self.tokenizer.dtype.itemsize)
        ends[-1] -= 1
        self.sides[TRAIN].tokens -= 1
        self.counts[eot] -= 1

    def _cut(self, train: BinaryIO, val: BinaryIO, task: int, cut: int) -> None:
        characters, tokens, sizes = (ends[task : task + 2] for ends in self._ends)
        itemsize = self.tokenizer.dtype.itemsize
        self._unchanged = tokens[0] * itemsize
        train.seek(self._unchanged)
        old = np.frombuffer(
            train.read((tokens[1] - tokens[0]) * itemsize), dtype=self.tokenizer.dtype
        )
        left, right, size = self._divide(
            old, cut - characters[0], characters[1] - characters[0], sizes[1] - sizes[0]
        )
        val.write(right.data)
        while block := train.read(_COPY):
            val.write(block)
        train.seek(self._unchanged)
        train.write(left.data)
        train.truncate()
        whole = self.sides[TRAIN]
        total = whole.tokens + len(left) + len(right) - len(old)
        here = Counts(tokens[0] + len(left), sizes[0] + size, cut)
        rest = Counts(total - here.tokens, whole.bytes - here.bytes, whole.characters - cut)
        self.sides = (here, rest)
        self.counts = _sum(self.counts, -np.bincount(old))
        self.counts = _sum(self.counts, np.bincount(np.concatenate([left, right])))

    def _divide(
        self, ids: Tokens, at: int, characters: int, size: int
    ) -> tuple[Tokens, Tokens, int]:
        """A task's tokens in two parts, cut before character ``at``, and the left part's bytes."""
        encode, eot = self.tokenizer.encode_array, self.tokenizer.eot
        ends = [*([] if eot is None else np.flatnonzero(ids == eot).tolist()), len(ids)]
        starts = [0, *(end + 1 for end in ends)]
        spans = list(zip(starts, ends, strict=False))
        texts = [self.tokenizer.decode(ids[start:end].tolist()) for start, end in spans]
        if sum(map(len, texts)) != characters:  # decoding does not restore the text
            self.exact = False
            k = round(len(ids) * at / max(1, characters))
            return ids[:k], ids[k:], round(size * at / max(1, characters))
        left_size = 0
        k = 0
        while at > len(texts[k]):
            at -= len(texts[k])
            left_size += len(texts[k].encode())
            k += 1
        (start, end), text = spans[k], texts[k]
        left_size += len(text[:at].encode())
        if at == len(text):  # a document ends here and keeps its end-of-text token
            return ids[: end + 1], ids[end + 1 :], left_size
        left = np.concatenate([ids[:start], encode(text[:at])])
        return left, np.concatenate([encode(text[at:]), ids[end:]]), left_size

    def _settle_documents(self, cut: int) -> None:
        path = self.folder / "documents.tmp"
        if path.stat().st_size == 0:
            return
        rows = np.memmap(path, dtype=DOCUMENT, mode="r+")
        for i in range(0, len(rows), _COPY):
            places = rows["place"][i : i + _COPY]
            places[:] = places >= cut
            held = int(places.sum())
            self.sides[VAL].documents += held
            self.sides[TRAIN].documents += len(places) - held
        rows.flush()


def _sum(a: Tokens, b: Tokens) -> Tokens:
    """Element-wise sum of two histograms of different lengths."""
    if len(a) < len(b):
        a = np.pad(a, (0, len(b) - len(a)))
    a[: len(b)] += b
    return a
