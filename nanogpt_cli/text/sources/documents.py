"""A document as chunks of about half a megabyte, cut where the cut changes no tokens."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

from nanogpt_cli import text_encoding
from nanogpt_cli.errors import UserError
from nanogpt_cli.text.tokenizers import cuts

if TYPE_CHECKING:
    from hashlib import _Hash


# With more zero bytes than this, the bytes are another encoding or no text at all.
_MOST_ZEROS: Final = 0.03


class Readable(Protocol):
    """The part of an open file that the readers of this package need."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes; fewer only at the end."""
        ...


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
    """How sources are to be read; the attributes are those of ``request.Request``.

    Attributes:
        cut: finds the last safe cut in a buffer (``text.tokenizers.cuts``).
    """

    cut: cuts.Cutter
    errors: str = "strict"
    encoding: str = "utf-8"
    newlines: str = "keep"
    text_field: str = "text"


@dataclass
class Tally:
    """What reading skipped or had to cut, and what the user should know about the files.

    Attributes:
        empty_records: records without any text, which were left out.
        chats: records whose text was made from a list of messages.
        broken_bytes: bytes that were invalid in their encoding and were replaced or left out.
        first_skip: what was wrong with the first skipped record.
        first_binary: what the first binary file is that was skipped in a folder.
        remarks: sentence -> the files that it is true of.
    """

    forced_cuts: int = 0
    skipped_records: int = 0
    skipped_files: int = 0
    empty_records: int = 0
    chats: int = 0
    broken_bytes: int = 0
    first_skip: UserError | None = None
    first_binary: UserError | None = None
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, error: UserError, reader: Reader) -> None:
        """Count a record that cannot be read; raises the error unless such records are skipped."""
        if reader.errors != "skip":
            raise error
        self.skipped_records += 1
        self.first_skip = self.first_skip or error

    def remark(self, sentence: str, name: str) -> None:
        """Note how a file was read, for the data receipt."""
        self.remarks.setdefault(sentence, []).append(name)


def option(name: str, value: str = "") -> str:
    """How to say an option of ``prepare`` in a hint: on a command line, and in a recipe."""
    words = [f"--{name.replace('_', '-')}", *([shlex.quote(value)] if value else [])]
    return f"{' '.join(words)} (in a recipe: data.{name})"


# cp1252, Windows' Western European encoding, has letters where Latin-1 has control characters.
OTHER_ENCODING: Final = (
    "if all of it is in another encoding, name that one, for example "
    f"{option('encoding', 'cp1252')}; if only some bytes are wrong, use --errors replace or skip"
)


def check_zeros(data: bytes, name: str, encoding: str, zeros: float | None = None) -> None:
    """Refuse what has zeros where text has none.

    Args:
        data: bytes of the file.
        name: the file.
        encoding: what it is read as.
        zeros: zeros among its characters if they are not those among the bytes.

    Raises:
        UserError: more than three per cent are zeros.
    """
    share = data.count(0) / max(1, len(data)) if zeros is None else zeros
    if share <= _MOST_ZEROS:
        return
    likely = text_encoding.guess(data)
    raise UserError(
        f"{name}: {share:.0%} of its characters are zeros, so it is not {encoding} text",
        f"it looks like {likely}: use {option('encoding', likely)}"
        if likely
        else "it looks like a binary file: leave it out",
    )


def document(data: bytes, name: str, place: int, reader: Reader, tally: Tally) -> Iterator[Chunk]:
    """A record's text as chunks; one without any text is left out and counted."""
    if not data:
        tally.empty_records += 1
        return
    if reader.newlines == "lf":
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if len(data) <= cuts.LIMIT:
        yield Chunk(data, True, name, place)
        return
    for chunk in text_chunks(cast(Readable, io.BytesIO(data)), name, reader, tally):
        yield chunk._replace(place=place)


def text_chunks(
    stream: Readable,
    name: str,
    reader: Reader,
    tally: Tally,
    *,
    digest: _Hash | None = None,
    offset: int = 0,
) -> Iterator[Chunk]:
    """A stream that is one document, as chunks.

    Args:
        digest: as in ``Chunk``.
        offset: byte offset in the file at which the stream begins.

    Raises:
        UserError: a block of the stream is no text.
    """
    buffer = bytearray()
    while True:
        block = stream.read(cuts.BLOCK)
        if b"\0" in block:
            check_zeros(block, name, reader.encoding)
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
