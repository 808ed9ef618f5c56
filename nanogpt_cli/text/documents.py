"""A document as pieces of about half a megabyte, each cut where that changes no tokens."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

from nanogpt_cli.text import cuts
from nanogpt_cli.text.reading import Readable

if TYPE_CHECKING:
    from hashlib import _Hash


class Piece(NamedTuple):
    """A part of a document.

    Attributes:
        data: text in UTF-8, not yet checked.
        last: the document ends here; a piece may be empty only to say so.
        name: the file it comes from, for messages.
        place: byte offset of ``data`` in the (unpacked) file, or the record's line number.
        digest: the running sha256 of the document where reading keeps one; at the last piece it
            covers all of it.
    """

    data: bytes
    last: bool
    name: str
    place: int
    digest: _Hash | None = None


@dataclass(frozen=True)
class Reader:
    """How sources are to be read.

    Attributes:
        cut: finds the last safe cut in a buffer (``text.cuts``).
        errors: ``strict``, ``replace`` or ``skip``: what to do with what cannot be read.
        encoding: of text files; ``utf-8`` is passed through unchanged.
        text_field: the field of a record that holds the text.
    """

    cut: cuts.Cutter
    errors: str = "strict"
    encoding: str = "utf-8"
    text_field: str = "text"


@dataclass
class Tally:
    """What reading met besides documents."""

    forced_cuts: int = 0
    skipped_records: int = 0
    skipped_files: int = 0


def document(data: bytes, name: str, place: int, reader: Reader, tally: Tally) -> Iterator[Piece]:
    """One document that is already in memory, as pieces."""
    if len(data) <= cuts.LIMIT:
        yield Piece(data, True, name, place)
        return
    for piece in text_pieces(cast(Readable, io.BytesIO(data)), name, reader, tally):
        yield piece._replace(place=place)


def text_pieces(
    stream: Readable, name: str, reader: Reader, tally: Tally, digest: _Hash | None = None
) -> Iterator[Piece]:
    """A stream that is one document, as pieces; ``digest`` as in ``Piece``."""
    buffer = bytearray()
    offset = 0
    while True:
        block = stream.read(cuts.BLOCK)
        buffer += block
        if len(block) < cuts.BLOCK:
            yield Piece(bytes(buffer), True, name, offset, digest)
            return
        cut = reader.cut(buffer)
        if not cut and len(buffer) >= cuts.LIMIT:
            cut = cuts.character_cut(buffer)
            tally.forced_cuts += 1
        if cut:
            yield Piece(bytes(memoryview(buffer)[:cut]), False, name, offset, digest)
            del buffer[:cut]
            offset += cut
