"""Wrappers of stdout and stderr while the program runs.

Everything that is written passes through them: control characters are escaped (see ``printable``),
characters that the console's encoding lacks are replaced, and failing output is recorded, so that a
full disk is not mistaken for a bug. Our own colours are written through ``trusted``.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast

from nanogpt_cli.printable import encodable, printable


class Output(io.TextIOBase):
    """A text stream that replaces characters which its encoding lacks.

    It has no ``buffer``, through which bytes could bypass it.

    Args:
        stream: the stream to write to.
        lenient: whether to ignore errors of writing, as suits commentary; else they are raised.
    """

    def __init__(self, stream: TextIO, *, lenient: bool = False) -> None:
        self._stream = stream
        self._lenient = lenient
        self.failure: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream; utf-8 if it has none."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """Error handler of the stream, which never gets characters that it lacks."""
        return getattr(self._stream, "errors", None)

    def write(self, text: str) -> int:
        """Write the text, with characters replaced that the encoding lacks."""
        try:
            self._stream.write(encodable(text, self.encoding))
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        self.failure = error
        if not self._lenient:
            raise error
        self.abandon()

    def abandon(self) -> None:
        """Redirect buffered and later output to nowhere, or the interpreter would fail at exit."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def fileno(self) -> int:
        """File descriptor of the stream."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Do nothing, because the stream belongs to the interpreter."""


class Guard(Output):
    """An ``Output`` that escapes control characters.

    Attributes:
        trusted: an output without escaping, for text that was escaped and then coloured, and for
            results that must be written unchanged.
    """

    def __init__(self, stream: TextIO, *, lenient: bool = False) -> None:
        super().__init__(stream, lenient=lenient)
        self.trusted = Output(stream, lenient=lenient)

    def write(self, text: str) -> int:
        """Write the text with its control characters escaped."""
        super().write(printable(text))
        return len(text)

    def failed_with(self, error: BaseException) -> bool:
        """Whether this error was raised by writing here."""
        return error in (self.failure, self.trusted.failure)


def trusted(stream: TextIO) -> TextIO:
    """The unescaped output behind a guard, or the stream itself if it is none."""
    return cast(TextIO, stream.trusted) if isinstance(stream, Guard) else stream


def _open(stream: TextIO | None) -> TextIO:
    """The stream, or a null device if the program was started with it closed (``>&-``)."""
    return Path(os.devnull).open("w", encoding="utf-8") if stream is None else stream


@contextlib.contextmanager
def guarded() -> Iterator[Guard]:
    """Context in which stdout and stderr are guarded; it gives the guard of stdout."""
    before = sys.stdout, sys.stderr
    out, err = Guard(_open(sys.stdout)), Guard(_open(sys.stderr), lenient=True)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before
