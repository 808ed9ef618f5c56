"""The two ways of splitting text into train and validation, each in one pass."""

from __future__ import annotations

import contextlib
import itertools
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from nanogpt_cli.text.pipeline import TRAIN, VAL, Encoded
from nanogpt_cli.text.sources.decoding import CODEC_POLICY
from nanogpt_cli.text.token_file import TokenFile
from nanogpt_cli.text.tokenizers import cuts
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer, Tokens

_COPY: Final = 1 << 22
_TRIES: Final = 8  # places of a cut at which the whole chunk is encoded
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

    def close(self) -> None:
        """Flush the files; they are complete afterwards."""
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

    The cut is before character ``int(n * (1 - val_fraction))`` of the whole text, as nanoGPT's is,
    without knowing n in advance. If that would cut a token in two, it is moved to the nearest place
    where the two parts, each encoded alone, have the tokens of the whole; see ``_shift``.
    The text where the cut may still fall is kept in files, because many tokenizers do not give back
    the text that they encoded.

    Args:
        val_fraction: share of the characters for validation.
        errors: how bytes that are not UTF-8 are treated, as in ``Request``.
    """

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, val_fraction: float, errors: str
    ) -> None:
        super().__init__(folder, tokenizer)
        self._share, self._errors = 1 - val_fraction, errors
        # After each task: characters, tokens and bytes so far.
        self._ends = (array("Q", [0]), array("Q", [0]), array("Q", [0]))
        self._first_kept = 0  # the first task whose text is still kept
        self._unchanged = 0  # bytes of train.bin before the task that was cut
        self._open_document = 0  # the character with which the current document began

    def add(self, encoded: Encoded) -> None:
        """Write one task's tokens, and remember its text and where it ended."""
        super().add(encoded)
        train = self.sides[TRAIN]
        for ends, value in zip(
            self._ends, (train.characters, train.tokens, train.bytes), strict=True
        ):
            ends.append(value)
        self._keep(encoded)

    def _keep(self, encoded: Encoded) -> None:
        """Keep a task's text; remove those before the earliest character of any cut."""
        chunks = encoded.task.chunks
        rows = [
            [len(chunk.data) for chunk in chunks], encoded.lengths,
            encoded.characters, encoded.bytes, [chunk.last for chunk in chunks],
        ]  # fmt: skip
        with self._kept(len(self._ends[0]) - 2).open("wb") as file:
            file.write(np.array([len(chunks)], dtype=np.int64).tobytes())
            file.write(np.array(rows, dtype=np.int64).tobytes())
            file.writelines(chunk.data for chunk in chunks)
        self._forget(int(self.sides[TRAIN].characters * self._share))

    def _kept(self, task: int) -> Path:
        return self.folder / f"text-{task}.tmp"

    def _forget(self, place: int) -> None:
        """Remove the kept texts of the tasks that end at or before character ``place``."""
        while self._first_kept < len(self._ends[0]) - 1:
            if self._ends[0][self._first_kept + 1] > place:
                return
            self._kept(self._first_kept).unlink()
            self._first_kept += 1

    def _add_documents(self, encoded: Encoded) -> None:
        position = self.sides[TRAIN].characters - sum(encoded.characters)
        rows = []
        for found, characters in zip(encoded.task.digests, encoded.characters, strict=True):
            position += characters
            if found is not None:
                rows.append((found, self._open_document))
                self._open_document = position
        self.documents.write(np.array(rows, dtype=DOCUMENT).tobytes())

    def close(self) -> None:
        """Move the tail to ``val.bin``; counts and document sides are exact afterwards."""
        super().close()
        self._drop_last_end()
        characters = self.sides[TRAIN].characters
        cut = int(characters * self._share)
        if cut < characters:
            self._forget(cut)
            cut = self._cut(self._first_kept, cut)
        self._forget(characters)
        self._settle_documents(cut)

    def sha256(self, side: int) -> str:
        """See ``SplitWriter``."""
        return self.files[side].sha256(self._unchanged if side == TRAIN else 0)

    def _drop_last_end(self) -> None:
        # End-of-text tokens separate documents, so that none follows the last document.
        eot, ends = self.tokenizer.eot, self._ends[1]
        if eot is None or not ends[-1]:
            return
        with self.files[TRAIN].path.open("rb+") as file:
            file.truncate((ends[-1] - 1) * self.tokenizer.dtype.itemsize)
        ends[-1] -= 1
        self.sides[TRAIN].tokens -= 1
        self.counts[eot] -= 1

    def _cut(self, task: int, cut: int) -> int:
        """Move everything from character ``cut``, which lies in ``task``, to ``val.bin``.

        Returns:
            the character before which the text was cut in the end.
        """
        characters, tokens, sizes = (ends[task : task + 2] for ends in self._ends)
        itemsize = self.tokenizer.dtype.itemsize
        self._unchanged = tokens[0] * itemsize
        with (
            self.files[TRAIN].path.open("rb+") as train,
            self.files[VAL].path.open("wb") as val,
        ):
            train.seek(self._unchanged)
            held = train.read((tokens[1] - tokens[0]) * itemsize)
            old = np.frombuffer(held, dtype=self.tokenizer.dtype)
            left, right, size, shift = self._divide(task, old, cut - characters[0])
            cut += shift
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
        return cut

    def _divide(self, task: int, ids: Tokens, at: int) -> tuple[Tokens, Tokens, int, int]:
        """A task's tokens in two parts, cut near character ``at``.

        Returns:
            both parts, the left part's bytes, and by how many characters the cut was moved.
        """
        before = self._ends[0][task] + at
        with self._kept(task).open("rb") as file:
            count = int(np.frombuffer(file.read(8), dtype=np.int64)[0])
            rows = np.frombuffer(file.read(5 * 8 * count), dtype=np.int64).reshape(5, count)
            done = size = 0
            for held, length, characters, text_bytes, last in rows.T.tolist():
                if at < characters:
                    break
                file.seek(held, 1)
                at, size = at - characters, size + text_bytes
                # A document that ends here keeps its end-of-text token.
                done += length + (last and self.tokenizer.eot is not None)
            text = file.read(held).decode("utf-8", CODEC_POLICY[self._errors])
        rest = done + length
        shift = self._shift(text, at, before, ids[done:rest], bool(last))
        at += shift
        if last and at == len(text):
            rest += self.tokenizer.eot is not None
        encode = self.tokenizer.encode_array
        left = np.concatenate([ids[:done], encode(text[:at]), ids[done + length : rest]])
        right = np.concatenate([encode(text[at:]), ids[rest:]])
        return left, right, size + len(text[:at].encode()), shift

    def _shift(self, text: str, at: int, before: int, ids: Tokens, last: bool) -> int:
        """By how many characters to move the cut so that both parts have the tokens of the whole.

        Zero if the tokenizer allows it nowhere within 500 characters, or half of the smaller part.

        Args:
            text: the chunk that is cut.
            at: before which of its characters.
            before: characters of the whole text before the cut.
            ids: the chunk's tokens.
            last: a document ends with the chunk, so that the text can be cut behind it.
        """
        after = self._ends[0][-1] - before
        reach = min(cuts.REACH, min(before, after) // 2)
        places = range(max(0, at - reach), min(len(text) - (not last), at + reach) + 1)
        encode = self.tokenizer.encode_array
        for place in itertools.islice(cuts.near(text, at, places, self.tokenizer), _TRIES):
            parts = encode(text[:place]), encode(text[place:])
            alone = at == before, len(text) - at == after  # nothing else is on this side
            empty = any(a and len(part) < 2 for a, part in zip(alone, parts, strict=True))
            if not empty and np.array_equal(np.concatenate(parts), ids):
                return place - at
        return 0

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
