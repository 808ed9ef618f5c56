"""A split's text as one stream of bytes, hashed and counted while it is read."""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from typing import TYPE_CHECKING

from nanogpt_cli.text.proof.source_text import Piece, SourceText

if TYPE_CHECKING:
    from hashlib import _Hash


class SourceStream:
    """The text of a split as a stream of bytes, hashed and counted as it is read.

    Attributes:
        position: bytes taken so far.
        ends: where documents end, as offsets in the text; int64.
        digest: sha256 of all that was read.
        size: bytes read, in UTF-8 and after repair.
        source_bytes: bytes of the source that were read.
        broken: those of them that were not UTF-8.
    """

    def __init__(self, source: SourceText) -> None:
        self._pieces = source.pieces()
        self._held: deque[tuple[int, Piece]] = deque()  # each with its offset
        self.position = 0
        self.ends = array("q")
        self.digest: _Hash = hashlib.sha256()
        self.size = self.source_bytes = self.broken = 0

    def read(self) -> Piece | None:
        """The next piece, or None at the end; not to be mixed with ``take``."""
        piece = next(self._pieces, None)
        if piece is not None:
            self._held.append((self.size, piece))
            self.size += len(piece.text)
            self.source_bytes += piece.source_bytes
            self.broken += piece.broken
            self.digest.update(piece.text)
            if piece.ends:
                self.ends.append(self.size)
        return piece

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes; fewer at the end of the text."""
        while self.size - self.position < count and self.read() is not None:
            pass
        start, parts = self.position, []
        self.position = min(self.size, start + count)
        for offset, piece in self._held:
            parts.append(piece.text[max(0, start - offset) : max(0, self.position - offset)])
        while len(self._held) > 1 and self._held[1][0] <= start:  # the last block can be asked for
            self._held.popleft()
        return b"".join(parts)

    def where(self, byte: int) -> str:
        """File and place of a byte of the text that was read lately."""
        for offset, piece in reversed(self._held):
            if offset <= byte:
                if piece.record:
                    return f"{piece.name}, record {piece.place:,}"
                return f"{piece.name}, byte {piece.place + byte - offset:,}"
        return ""

    def forget(self) -> None:
        """Drop the pieces that were read but for the last one."""
        while len(self._held) > 1:
            self._held.popleft()

    def finish(self) -> None:
        """Read the rest.

        Raises:
            UserError: the source is not what it was.
        """
        while self.read() is not None:
            self.forget()
