"""Files of text in any encoding, read as UTF-8.

The encoding is the one the user names (UTF-8 by default), but a byte-order mark at the beginning
of a file takes precedence. The mark is never part of the text. A file that looks like another
encoding is refused with the name of that encoding, because decoding it would succeed and give
nonsense.
"""

from __future__ import annotations

import codecs
import io
import threading
from collections.abc import Callable
from typing import Final

from nanogpt_cli import text_encoding
from nanogpt_cli.errors import UserError
from nanogpt_cli.text.sources import binary
from nanogpt_cli.text.sources.documents import Readable, Reader, Tally, check_zeros, option

_HEAD: Final = 1 << 16  # bytes by which a file is judged
_BLOCK: Final = 1 << 18
_LEAST: Final = 64  # bytes from which text in UTF-8 can be told from UTF-16 for certain


class _Lost(threading.local):
    """Bytes that this thread replaced or left out so far."""

    bytes = 0


_lost = _Lost()


def _losing(replacement: str) -> Callable[[UnicodeError], tuple[str, int]]:
    def handle(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeDecodeError):
            raise error
        _lost.bytes += error.end - error.start
        return replacement, error.end

    return handle


codecs.register_error("nanogpt-replace", _losing("\ufffd"))
codecs.register_error("nanogpt-skip", _losing(""))
# The policies of --errors -> the names of Python's error handlers for them.
CODEC_POLICY: Final = {"strict": "strict", "replace": "nanogpt-replace", "skip": "nanogpt-skip"}


def decode(data: bytes, reader: Reader, tally: Tally) -> str:
    """The text of UTF-8 bytes; what is invalid is treated as the reader says, and counted.

    Raises:
        UnicodeDecodeError: they are invalid, and the reader is strict.
    """
    before = _lost.bytes
    text = data.decode("utf-8", CODEC_POLICY[reader.errors])
    tally.broken_bytes += _lost.bytes - before
    return text


class Peekable:
    """A stream whose beginning can be looked at before it is read."""

    def __init__(self, inner: Readable) -> None:
        self._inner = inner
        self._held = b""
        self._at = 0  # what is held before has been read

    def peek(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer at the end; they will be read again."""
        held = len(self._held) - self._at
        if held < size:
            self._held = self._held[self._at :] + self._inner.read(size - held)
            self._at = 0
        return self._held[self._at : self._at + size]

    def read(self, size: int = -1, /) -> bytes:
        """See ``Readable``."""
        if not self._held:
            return self._inner.read(size)
        data = self._held[self._at :] if size < 0 else self._held[self._at : self._at + size]
        self._at += len(data)
        if self._at == len(self._held):
            self._held, self._at = b"", 0
        rest = -1 if size < 0 else size - len(data)
        return data + self._inner.read(rest) if rest else data


class Utf8(Peekable):
    """A stream of UTF-8 without a byte-order mark.

    Attributes:
        skipped: length of the mark that was left out.
        unchanged: its bytes, after the mark, are those of the file.
    """

    def __init__(self, inner: Readable, skipped: int, *, unchanged: bool) -> None:
        super().__init__(inner)
        self.skipped = skipped
        self.unchanged = unchanged


def as_utf8(
    stream: Readable, name: str, reader: Reader, tally: Tally, *, newlines: str = "keep"
) -> Utf8:
    """A text file as UTF-8.

    Args:
        stream: its bytes.
        name: what to call it in messages and remarks.
        reader: the encoding that the user names, and what to do about invalid bytes.
        tally: counts invalid bytes; gets a remark if the encoding is not the one named.
        newlines: ``lf`` also turns CRLF and CR into LF.

    Raises:
        UserError: the file is in another encoding, or is no text; the hint says what to do if the
            encoding or the kind of file can be told.
    """
    source = Peekable(stream)
    head = source.peek(_HEAD)
    if wrong := binary.refusal(head, name):
        raise wrong
    encoding, skipped = _encoding(head, name, reader, tally)
    _check(head[skipped:], name, encoding)
    source.read(skipped)
    if encoding == "utf-8" and newlines == "keep":
        return Utf8(source, skipped, unchanged=True)
    decoded = _Transcoded(source, name, encoding, reader, tally, skipped, newlines)
    return Utf8(decoded, skipped, unchanged=False)


def _encoding(head: bytes, name: str, reader: Reader, tally: Tally) -> tuple[str, int]:
    """The encoding of a file that begins with ``head``, and the length of its mark."""
    wanted = codecs.lookup(reader.encoding).name.removesuffix("-sig")
    declared, length = text_encoding.marked(head)
    if declared:
        if not declared.startswith(wanted):
            tally.remark(f"read as {declared}, as the byte-order mark says", name)
        return declared, length
    if wanted not in ("utf-16", "utf-32") or not head:
        return wanted, 0
    likely = text_encoding.guess(head)
    if not likely.startswith(wanted):
        other = (
            f"it looks like {likely}: use {option('encoding', likely)}"
            if likely
            else (
                f"use {option('encoding', 'utf-8')} if it is UTF-8, or name the byte order: "
                f"{wanted}-le or {wanted}-be"
            )
        )
        raise UserError(f"{name} is not {wanted} text: it has no byte-order mark", other)
    tally.remark(f"read as {likely}; it has no byte-order mark", name)
    return likely, 0


def _check(head: bytes, name: str, encoding: str) -> None:
    """Refuse a file that is in another encoding, as far as its beginning tells."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    try:
        text = decoder.decode(head)
    except UnicodeError:  # reading it will say where
        return
    check_zeros(head, name, encoding, text.count("\0") / max(1, len(text)))
    if encoding == "utf-8" and "\ufffd" in text and (likely := text_encoding.guess(head)):
        raise UserError(
            f"{name} is not UTF-8 text",
            f"it looks like {likely}: use {option('encoding', likely)}",
        )
    if text_encoding.is_wide(encoding) and _is_plain(head):
        raise UserError(
            f"{name} is not {encoding} text: it looks like UTF-8",
            "prepare the files of each encoding by themselves (--glob), or convert this one",
        )


def _is_plain(head: bytes) -> bool:
    """Whether bytes are UTF-8 with the spaces and without the control characters of a text."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    spaces = sum(map(text.count, " \n"))
    return len(head) >= _LEAST and 20 * spaces > len(text) and not text_encoding.guess(head)


class _Transcoded:
    """A text file in another encoding, read as UTF-8."""

    def __init__(
        self,
        inner: Readable,
        name: str,
        encoding: str,
        reader: Reader,
        tally: Tally,
        offset: int,
        newlines: str,
    ) -> None:
        self._inner = inner
        self._name = name
        decoder = codecs.getincrementaldecoder(encoding)(CODEC_POLICY[reader.errors])
        self._decoder = (
            io.IncrementalNewlineDecoder(decoder, translate=True) if newlines == "lf" else decoder
        )
        self._tally = tally
        self._ready = b""
        self._offset = offset
        self._begun = False

    def _more(self) -> bool:
        data = self._inner.read(_BLOCK)
        before = _lost.bytes
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._name}: not valid {error.encoding} near byte "
                f"{self._offset + error.start:,}: {error.reason}",
                f"name the encoding with {option('encoding')}, or use --errors replace or skip",
            ) from error
        self._tally.broken_bytes += _lost.bytes - before
        if text and not self._begun:  # the mark of an encoding whose marks are not known by name
            text, self._begun = text.removeprefix("\ufeff"), True
        self._ready += text.encode("utf-8", "replace")
        self._offset += len(data)
        return bool(data)

    def read(self, size: int = -1, /) -> bytes:
        """See ``Readable``."""
        while (size < 0 or len(self._ready) < size) and self._more():
            pass
        cut = len(self._ready) if size < 0 else size
        data, self._ready = self._ready[:cut], self._ready[cut:]
        return data
