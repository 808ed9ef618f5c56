"""A document as chunks of about half a megabyte, cut where the cut changes no tokens."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

from nanogpt_cli.text import cuts
from nanogpt_cli.text.reading import Readable

if TYPE_CHECKING:
    from hashlib import _Hash


class Chunk(NamedTuple):
    """A part of a document.

    Attributes:
        data: text in UTF-8, not yet checked.
        last: the document ends with this chunk, which may be empty.
        name: the file it comes from, for messages.
        place: byte offset of ``data`` in the (unpacked) file, or the record's line number.
        digest: the running sha256 of the document if reading computes one; at the last chunk it
            covers the whole document.
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
        errors: how to treat what cannot be read: ``strict``, ``replace`` or ``skip``.
        encoding: encoding of text files; ``utf-8`` is passed through unchanged.
        text_field: the field of a record that holds the text.
    """

    cut: cuts.Cutter
    errors: str = "strict"
    encoding: str = "utf-8"
    text_field: str = "text"


@dataclass
class Tally:
    """Counts of what reading skipped or had to cut."""

    forced_cuts: int = 0
    skipped_records: int = 0
    skipped_files: int = 0


def document(data: bytes, name: str, place: int, reader: Reader, tally: Tally) -> Iterator[Chunk]:
    """One document that is already in memory, as chunks."""
    if len(data) <= cuts.LIMIT:
        yield Chunk(data, True, name, place)
        return
    for chunk in text_chunks(cast(Readable, io.BytesIO(data)), name, reader, tally):
        yield chunk._replace(place=place)


def text_chunks(
    stream: Readable, name: str, reader: Reader, tally: Tally, digest: _Hash | None = None
) -> Iterator[Chunk]:
    """A stream that is one document, as chunks; ``digest`` as in ``Chunk``."""
    buffer = bytearray()
    offset = 0
    while True:
        block = stream.read(cuts.BLOCK)
        buffer += block
        if len(block) < cuts.BLOCK:
            yield Chunk(bytes(buffer), True, name, offset, digest)
            return
        cut = reader.cut(buffer)
        if not cut and len(buffer) >= cuts.LIMIT:
            cut = cuts.character_cut(buffer)
            tally.forced_cuts += 1
        if cut:
            yield Chunk(bytes(memoryview(buffer)[:cut]), False, name, offset, digest)
            del buffer[:cut]
            offset += cut
