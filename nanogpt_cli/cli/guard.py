"""What stands before stdout and stderr while the program runs.

All that is written passes here: what came from outside is made harmless (see ``printable``), signs
that the console's encoding lacks are replaced, and a full disk is told from a bug. Our own colours
go through ``trusted``.
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
    """A text stream in its own encoding, whatever characters are written.

    It has no ``buffer``, past which bytes could be written.

    Args:
        stream: where the text goes.
        lenient: go on in silence when nobody can read any more, as befits commentary; else the
            error is raised.
    """

    def __init__(self, stream: TextIO, *, lenient: bool = False) -> None:
        self._stream = stream
        self._lenient = lenient
        self.failure: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream; utf-8 where it has none."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """What the stream does with characters it lacks; none reach it."""
        return getattr(self._stream, "errors", None)

    def write(self, text: str) -> int:
        """Write the text as it is, but for what the encoding lacks."""
        try:
            self._stream.write(encodable(text, self.encoding))
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """Pass on what waits."""
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
        """Let all that waits and comes go nowhere; else the interpreter complains at its exit."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def fileno(self) -> int:
        """The stream's."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """The stream is not ours to close."""


class Guard(Output):
    """An ``Output`` that shows control characters instead of sending them.

    Attributes:
        trusted: the way past it, for text that has been made harmless and then coloured, and for a
            product that is written as it is.
    """

    def __init__(self, stream: TextIO, *, lenient: bool = False) -> None:
        super().__init__(stream, lenient=lenient)
        self.trusted = Output(stream, lenient=lenient)

    def write(self, text: str) -> int:
        """Write the text, made harmless."""
        super().write(printable(text))
        return len(text)

    def failed_with(self, error: BaseException) -> bool:
        """Whether it was writing here that raised this error."""
        return error in (self.failure, self.trusted.failure)


def trusted(stream: TextIO) -> TextIO:
    """The way past the guard, if there is one."""
    return cast(TextIO, stream.trusted) if isinstance(stream, Guard) else stream


def _open(stream: TextIO | None) -> TextIO:
    """The stream; nowhere, if whoever started the program has closed it (``>&-``)."""
    return Path(os.devnull).open("w", encoding="utf-8") if stream is None else stream


@contextlib.contextmanager
def guarded() -> Iterator[Guard]:
    """Put guards before stdout, which is given, and stderr."""
    before = sys.stdout, sys.stderr
    out, err = Guard(_open(sys.stdout)), Guard(_open(sys.stderr), lenient=True)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before
