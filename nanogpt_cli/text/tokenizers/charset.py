"""Collecting a character vocabulary while the text is being encoded, in one pass.

Characters get provisional ids: those in the beginning of the text in sorted, final order, others as
they appear. If others did appear, the token files are renumbered at the end. Since one pass is
enough, standard input and hub streams need no copy on disk.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from nanogpt_cli.errors import UserError
from nanogpt_cli.text.parallel import ordered_map
from nanogpt_cli.text.tokenizers.tokenizer import CharTokenizer, Tokenizer, Tokens, code_points

_ASCII: Final = 128
_CODE_POINTS: Final = 0x110000
_UNSEEN: Final = 0xFFFF
_RENUMBER: Final = 1 << 20  # bytes at a time


class CharsetCollector(Tokenizer):
    """A character tokenizer whose vocabulary grows; safe to use from several threads.

    Args:
        eot: reserve an id for end of text.
    """

    kind = "char"
    cut_rule = "characters"
    vocab_size = _UNSEEN

    def __init__(self, *, eot: bool = False) -> None:
        self._with_eot = eot
        self._lock = threading.Lock()
        self.settle(())

    def settle(self, texts: Iterable[str]) -> None:
        """Start over with the characters of ``texts`` in sorted order, then the rest of ASCII."""
        seen = np.zeros(_CODE_POINTS, dtype=bool)
        for text in texts:
            seen[code_points(text)] = True
        first = np.flatnonzero(seen)
        self.eot = len(first) if self._with_eot else None
        others = np.flatnonzero(~seen[:_ASCII])
        nothing = [0] * self._with_eot  # end of text has an id, but no code point
        self._points = [*first.tolist(), *nothing, *others.tolist()]  # by provisional id
        _check_room(len(self._points))
        self._ids = np.full(_CODE_POINTS, _UNSEEN, dtype="<u2")
        self._ids[first] = np.arange(len(first))
        self._ids[others] = np.arange(len(self._points) - len(others), len(self._points))
        ascii_ids = self._ids[:_ASCII]
        fits = int(ascii_ids.max()) < 256
        self.ascii_ids = bytes(ascii_ids.tolist()).ljust(256, b"\0") if fits else None

    def encode_array(self, text: str) -> Tokens:
        """See ``Tokenizer``; ids are provisional.

        Raises:
            UserError: more than 65,406 distinct characters.
        """
        points = code_points(text)
        ids = self._ids.take(points)
        if int(ids.max(initial=0)) == _UNSEEN:
            self._learn(np.unique(points[ids == _UNSEEN]))
            ids = self._ids.take(points)
        return ids

    def _learn(self, points: Tokens) -> None:
        with self._lock:
            for point in points.tolist():
                if self._ids[point] == _UNSEEN:
                    _check_room(len(self._points) + 1)
                    self._ids[point] = len(self._points)
                    self._points.append(point)

    def decode(self, ids: Iterable[int]) -> str:
        """See ``Tokenizer``."""
        return "".join(chr(self._points[i]) for i in ids)

    def token_bytes(self, id: int) -> bytes:
        """See ``Tokenizer``."""
        return chr(self._points[id]).encode("utf-8", "replace")

    def to_json(self) -> dict[str, Any]:
        """Not supported: a growing vocabulary has no final form; see ``finished``."""
        raise NotImplementedError

    def finished(self, counts: Tokens) -> tuple[CharTokenizer, Tokens | None]:
        """The vocabulary of what was seen, and the map from provisional to final ids.

        Args:
            counts: how often each provisional id occurs in the data, shape (<= 65535,).

        Returns:
            the vocabulary, and an array with the final id of each provisional one; None if every
            id is final already.
        """
        seen = [i for i in np.flatnonzero(counts).tolist() if i != self.eot]
        characters = sorted(chr(self._points[i]) for i in seen)
        tokenizer = CharTokenizer(characters, eot=self._with_eot)
        order = np.zeros(len(counts), dtype=tokenizer.dtype)
        order[seen] = [tokenizer.encode(chr(self._points[i]))[0] for i in seen]
        if self.eot is not None and self.eot < len(order):
            order[self.eot] = tokenizer.eot
        used = np.flatnonzero(counts)
        return tokenizer, None if np.array_equal(order[used], used) else order


def renumbered(counts: Tokens, order: Tokens) -> Tokens:
    """A histogram of provisional ids as one of final ids; ``order`` as of ``finished``."""
    seen = np.flatnonzero(counts)
    result = np.zeros(int(order.max(initial=0)) + 1, dtype=np.int64)
    result[order[seen]] = counts[seen]
    return result


def renumber(path: Path, order: Tokens, workers: int) -> str:
    """Replace provisional ids by final ones, in place; returns the new file's sha256."""
    digest = hashlib.sha256()

    def blocks() -> Iterator[bytes]:
        with path.open("rb") as file:
            while block := file.read(_RENUMBER):
                yield block

    def final(block: bytes) -> Tokens:
        return order.take(np.frombuffer(block, dtype=order.dtype), mode="clip")

    with path.open("rb+") as file:  # writing never overtakes reading: the sizes are the same
        for new in ordered_map(final, blocks(), workers):
            digest.update(new.data)
            file.write(new.data)
    return digest.hexdigest()


def _check_room(size: int) -> None:
    if size > _UNSEEN:
        raise UserError(
            f"more than {_UNSEEN - _ASCII - 1:,} distinct characters",
            "a vocabulary of characters does not suit this text: use --tokenizer byte, "
            "gpt2 or bpe:32000",
        )
