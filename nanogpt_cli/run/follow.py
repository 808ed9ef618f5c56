"""Following a growing event log without ever re-reading it."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events

# Consecutive lines of ``step`` events; almost all of a long log.
_STEP_LINES = re.compile(rb'(?:\{"type":"step",[^\n]*\n)+')
# Bytes; the longest events, statistics of a thousand layers, have a hundredth of it.
LONGEST_LINE = 1 << 25


@dataclass
class EventReader:
    """Follows a growing log without ever re-reading it.

    Reading is bounded per call, a half-written last line waits for its rest, unknown types are
    skipped and counted, broken lines are counted. When the file shrinks or is replaced, reading
    starts again from its beginning and ``restarts`` grows: the caller must discard what it has. A
    log that exists but cannot be read, such as a named pipe, counts as empty, and an endless line
    ends the reading; ``problem`` says why.
    """

    path: Path
    offset: int = 0
    bad_lines: int = 0
    unknown: int = 0
    restarts: int = 0
    missing: bool = False
    problem: str = ""
    _tail: bytes = b""
    _no_log: bool = False
    _identity: tuple[int, int] | None = field(default=None, repr=False)

    def read(self, max_bytes: int = 1 << 20, max_seconds: float = 0.05) -> list[events.Event]:
        """The next events, at most about ``max_bytes`` of text or ``max_seconds`` of work."""
        return list(self._read(max_bytes, time.monotonic() + max_seconds))

    def read_all(self) -> list[events.Event]:
        """Everything there is now."""
        found: list[events.Event] = []
        while True:
            before = self.offset
            found += self._read(1 << 24, float("inf"))
            if self.offset == before:
                return found

    def read_blocks(self, max_bytes: int = 1 << 22) -> list[events.Event | bytes]:
        """Like ``read``, but consecutive ``step`` lines come back together, undecoded.

        For readers that turn a million steps into columns: decoding line by line would dominate.
        A block holds whole lines; ``decode_lines`` gives what ``read`` would have given.
        """
        data = self._take(max_bytes)
        whole = data.rfind(b"\n") + 1
        self._keep(data[whole:])
        found: list[events.Event | bytes] = []
        position = 0
        for block in _STEP_LINES.finditer(data, 0, whole):
            found += self.decode_lines(data[position : block.start()])
            found.append(block.group())
            position = block.end()
        found += self.decode_lines(data[position:whole])
        return found

    def skip_to(self, tail_bytes: int) -> None:
        """Leave out all but the last bytes of the log; their first line may count as broken."""
        with contextlib.suppress(OSError):
            self.offset = max(self.offset, self.path.stat().st_size - tail_bytes)
            self._tail = b""

    def decode_lines(self, lines: bytes) -> list[events.Event]:
        """The events of whole lines; broken and unknown ones are counted and left out."""
        decoded = (self._decode(line) for line in lines.split(b"\n"))
        return [event for event in decoded if event is not None]

    def at_end(self) -> bool:
        """Whether nothing is left to read for now."""
        if self.missing or self._no_log:
            return True
        try:
            return self.path.stat().st_size <= self.offset
        except OSError:
            return True

    def _take(self, max_bytes: int) -> bytes:
        """The tail held back and the next bytes; ``offset`` moves past all of them."""
        if self._no_log:
            return b""
        try:
            with foreign_files.opened(self.path) as file:
                self._notice_replacement(os.fstat(file.fileno()))
                file.seek(self.offset)
                data = file.read(max_bytes)
        except foreign_files.MissingFileError:
            self.missing = True
            return b""
        except (UserError, OSError) as error:
            self.missing, self.problem = True, str(getattr(error, "message", error))
            return b""
        self.missing, self.problem = False, ""
        self.offset += len(data)
        tail, self._tail = self._tail, b""
        return tail + data

    def _notice_replacement(self, stat: os.stat_result) -> None:
        identity = (stat.st_dev, stat.st_ino)
        replaced = self._identity is not None and identity != self._identity
        if replaced or stat.st_size < self.offset:
            self.offset, self._tail = 0, b""
            self.restarts += 1
        self._identity = identity

    def _read(self, max_bytes: int, deadline: float) -> Iterator[events.Event]:
        """Decode whole lines; what is left at the deadline is read again by the next call."""
        data = self._take(max_bytes)
        position = 0
        while (end := data.find(b"\n", position)) >= 0:
            event = self._decode(data[position:end])
            position = end + 1
            if event is not None:
                yield event
            if time.monotonic() > deadline:
                self.offset -= len(data) - position
                return
        self._keep(data[position:])

    def _keep(self, tail: bytes) -> None:
        """Hold back a half-written last line; one beyond any reason is no line of a log."""
        if len(tail) > LONGEST_LINE:
            self._no_log, tail = True, b""
            self.problem = (
                f"cannot read {self.path}: it has a line of more than {LONGEST_LINE:,} bytes, "
                "which no event log has"
            )
        self._tail = tail

    def _decode(self, line: bytes) -> events.Event | None:
        if not line.strip():
            return None
        try:
            event = events.decode(line)
        except ValueError:
            self.bad_lines += 1
            return None
        if event is None:
            self.unknown += 1
        return event
