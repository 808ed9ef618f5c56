"""Collecting a character vocabulary while the text is being encoded, in one pass.

Characters get provisional ids, ASCII its own code points and the rest in order of appearance; when
all text was seen the token files are renumbered to the sorted vocabulary. One pass means that
standard input and hub streams need no copy on disk.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from nanogpt_cli.errors import UserError
from nanogpt_cli.text.tokenizer import CharTokenizer, Tokenizer, Tokens, code_points

_ASCII: Final = 128
_UNSEEN: Final = 0xFFFF


class CharsetCollector(Tokenizer):
    """A character tokenizer whose vocabulary grows; safe to use from several threads.

    Args:
        eot: reserve an id for end of text.
    """

    kind = "char"
    cut_rule = "characters"
    ascii_is_itself = True
    vocab_size = _UNSEEN

    def __init__(self, *, eot: bool = False) -> None:
        self.eot = _ASCII if eot else None
        self._ids = np.full(0x110000, _UNSEEN, dtype="<u2")
        self._ids[:_ASCII] = np.arange(_ASCII)
        self._points = list(range(_ASCII + 1))  # by provisional id
        self._lock = threading.Lock()

    def encode_array(self, text: str) -> Tokens:
        """See ``Tokenizer``; ids are provisional.

        Raises:
            UserError: more than 65,406 distinct characters beyond ASCII.
        """
        points = code_points(text)
        if points.dtype == np.uint8:
            return points.astype("<u2")
        ids = self._ids.take(points)
        if int(ids.max(initial=0)) == _UNSEEN:
            self._learn(np.unique(points[ids == _UNSEEN]))
            ids = self._ids.take(points)
        return ids

    def _learn(self, points: Tokens) -> None:
        with self._lock:
            for point in points.tolist():
                if self._ids[point] != _UNSEEN:
                    continue
                if len(self._points) >= _UNSEEN:
                    raise UserError(
                        f"more than {_UNSEEN - _ASCII - 1:,} distinct characters",
                        "a vocabulary of characters does not suit this text: use --tokenizer byte, "
                        "gpt2 or bpe:32000",
                    )
                self._ids[point] = len(self._points)
                self._points.append(point)

    def decode(self, ids: Iterable[int]) -> str:
        """See ``Tokenizer``."""
        return "".join(chr(self._points[i]) for i in ids)

    def token_bytes(self, id: int) -> bytes:
        """See ``Tokenizer``."""
        return chr(self._points[id]).encode("utf-8", "replace")

    def to_json(self) -> dict[str, Any]:
        """A growing vocabulary has no lasting form; see ``finished``."""
        raise NotImplementedError

    def finished(self, counts: Tokens) -> tuple[CharTokenizer, Tokens]:
        """The vocabulary of what was seen, and the map from provisional to final ids.

        Args:
            counts: how often each provisional id stands in the data, shape (<= 65535,).
        """
        seen = [i for i in np.flatnonzero(counts).tolist() if i != self.eot]
        characters = sorted(chr(self._points[i]) for i in seen)
        tokenizer = CharTokenizer(characters, eot=self.eot is not None)
        order = np.zeros(len(counts), dtype=tokenizer.dtype)
        order[seen] = [tokenizer.encode(chr(self._points[i]))[0] for i in seen]
        if self.eot is not None and self.eot < len(order):
            order[self.eot] = tokenizer.eot
        return tokenizer, order
