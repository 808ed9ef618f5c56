"""The local copy of one far run folder, byte for byte, whatever happens to the connection."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

from nanogpt_cli import files, foreign_files
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import LONGEST_LINE
from nanogpt_cli.run.remote import far_side, status
from nanogpt_cli.run.remote.address import Address
from nanogpt_cli.run.remote.status import Status

CHUNK = 1 << 20  # bytes asked for at once
# Bytes of the copy that come again and must agree, always and after a new connection: the log may
# have been rewritten in its place.
_OVERLAP, _FIRST_OVERLAP, _LONGEST_OVERLAP = 64, 4096, 1 << 16
_OUTPUT = 1 << 20  # bytes at the end of the trainer's output that are worth copying
_QUIET = 20.0  # seconds without news after which the lock is tried; a process id may be reused
_STARTED = re.compile(rb'^\{"type":"run_started",[^\n]*', re.MULTILINE)


@dataclass(frozen=True)
class About:
    """What the far side says of a file: inode, bytes, and seconds since the epoch there."""

    inode: int
    size: int
    time: int


def about(words: list[str]) -> About | str:
    """The far side's line about a file; the word that stands there instead of numbers."""
    if len(words) == 3 and all(word.isdecimal() for word in words):
        return About(*map(int, words))
    return words[0]


class Mirror:
    """The copy of a run folder in the cache.

    A file is appended to as long as its inode stays, it does not shrink, and what comes again of it
    agrees; else its copy is replaced by a new file, which readers of a log notice.
    """

    def __init__(self, address: Address, folder: Path, *, control: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = RunFolder(folder)
        old = status.read(folder)
        self.path = address.path  # there
        self.status = Status(address.text, address.host, control=control, since=time.time())
        self._known = dict(old.known) if old and old.address == address.text else {}
        self._checked: set[str] = set()  # files that agreed since the connection was made
        self._recipe: About | None = None
        self._line = b""  # the log's last line as long as it is not whole
        self._started: events.RunStarted | None = None
        self._news = -_QUIET
        self._written: Status | None = None
        self._learn_of_old_copy()

    def tell(self, **changes: object) -> None:
        """Change the status, and write it if it has changed."""
        own = {"known": dict(self._known), "path": self.path}
        self.status = replace(self.status, **own, **changes)  # type: ignore[arg-type]
        if self.status != self._written or not status.is_copy(self.folder.path):
            status.write(self.folder.path, self.status)
            self._written = self.status

    def connected(self) -> None:
        """A connection was made: compare what is there before anything is appended."""
        self._checked.clear()
        self.tell(connected=True, since=time.time(), reason="", trouble=self._dropped())

    def cut(self, reason: str) -> None:
        """The connection has ended; waiting commands are dropped, for later they would surprise."""
        since = time.time() if self.status.connected else self.status.since
        self.tell(connected=False, since=since, reason=reason, alive=None, trouble=self._dropped())

    def commands(self) -> list[Path]:
        """The command files that wait, oldest first."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.folder.control))
        except OSError:
            return []
        temporary = files.TEMPORARY_PREFIX
        return [self.folder.control / name for name in names if not name.startswith(temporary)]

    def _dropped(self) -> str:
        """What became of commands that waited for a connection, or of an earlier one."""
        dropped = self.drop_commands()
        return f"the command {dropped[-1]} was not sent" if dropped else self.status.trouble

    def drop_commands(self) -> list[str]:
        """Remove the command files that wait; the names of their commands."""
        waiting = self.commands()
        for path in waiting:
            path.unlink(missing_ok=True)
        return [path.name.rpartition("-")[2] for path in waiting]

    def notice_clock(self, far: int, sent: float, received: float) -> None:
        """Compare the clocks; ``far`` was read, in whole seconds, between the other two."""
        ahead = far + 0.5 - (sent + received) / 2
        ahead = 0.0 if abs(ahead) < 2 + (received - sent) / 2 else round(ahead)
        if abs(ahead - self.status.clock_s) > 1 + (received - sent) / 2:
            self.status = replace(self.status, clock_s=float(ahead))

    def process(self, far_name: str) -> int:
        """The trainer's process id on the far machine; 0 if it is unknown or elsewhere."""
        started = self._started
        return started.pid if started is not None and started.host == far_name else 0

    def quiet(self) -> bool:
        """Whether the log has not grown for a while, so that its lock is worth a try."""
        return time.monotonic() - self._news >= _QUIET

    def alive(self, process: str, lock: str) -> bool | None:
        """Whether the trainer is running, from the far side's y, n or ? about process and lock."""
        if self._started is None:
            return True if lock == "y" else None
        if process == "?":
            return None
        return process == "y" and lock != "n"

    def wanted(self, name: str, there: About) -> tuple[int, int] | None:
        """Offset and count of the bytes to ask for next; ``None`` if the copy is complete."""
        if name == far_side.RECIPE:
            whole = min(there.size, foreign_files.LARGEST_CONFIG)
            return None if there == self._recipe else (0, whole)
        if not self._continues(name, there):
            self._known.pop(name, None)
        here = self._end(name)
        if here is None:
            start = max(0, there.size - _OUTPUT) if name == far_side.OUTPUT else 0
            return start, min(CHUNK, there.size - start)
        overlap = self._overlap(name)
        if here == there.size and name in self._checked:
            return None
        return here - overlap, overlap + min(CHUNK, there.size - here)

    def put(self, name: str, offset: int, data: bytes, before: About, after: About | str) -> bool:
        """Take the bytes at ``offset`` into the copy; whether they were right."""
        if not isinstance(after, About) or after.inode != before.inode:
            return self._forget(name)
        if after.size < offset + len(data):  # zeros stand for what is missing
            return self._forget(name)
        path = self.folder.path / name
        if name == far_side.RECIPE:
            files.write_bytes(path, data)
            self._recipe = before if after == before else None
            return True
        here = self._end(name)
        if here is None:
            if offset and name == far_side.LOG:  # its copy was cleared after these were asked for
                return False
            new = self._begin(name, before.inode, offset, data)
        elif self._agrees(path, data[: here - offset]):
            new = data[here - offset :]
            with path.open("ab") as file:
                file.write(new)
        else:
            return self._forget(name)
        self._checked.add(name)
        if name == far_side.LOG and new:
            self._news = time.monotonic()
            self._learn(new)
        self._keep_time(path, after)
        return True

    def gone(self, name: str) -> None:
        """The file is not there any more, though its folder is."""
        self._known.pop(name, None)
        self._recipe = None if name == far_side.RECIPE else self._recipe
        (self.folder.path / name).unlink(missing_ok=True)

    def _begin(self, name: str, inode: int, offset: int, data: bytes) -> bytes:
        """Begin a copy as a new file, so that readers of an old one notice."""
        files.write_bytes(self.folder.path / name, data)
        self._known[name] = (inode, offset)
        if name == far_side.LOG:
            self._started, self._line = None, b""
        return data

    def _forget(self, name: str) -> bool:
        self._known.pop(name, None)
        return False

    def _end(self, name: str) -> int | None:
        """The far offset at which the copy ends; ``None`` if there is no copy to go on with."""
        if name not in self._known:
            return None
        try:
            return self._known[name][1] + (self.folder.path / name).stat().st_size
        except OSError:  # somebody has cleared the cache
            self._forget(name)
            return None

    def _continues(self, name: str, there: About) -> bool:
        end = self._end(name)
        return end is not None and self._known[name][0] == there.inode and there.size >= end

    def _overlap(self, name: str) -> int:
        """How much of the copy's end is asked for again: at least its unfinished last line, which
        a trainer that goes on after a crash cuts off."""
        least = _OVERLAP if name in self._checked else _FIRST_OVERLAP
        if name == far_side.LOG:
            least = max(least, min(len(self._line) + 1, _LONGEST_OVERLAP))
        return min((self.folder.path / name).stat().st_size, least)

    def _agrees(self, path: Path, again: bytes) -> bool:
        with path.open("rb") as file:
            file.seek(-len(again), os.SEEK_END)
            return file.read() == again

    def _learn(self, data: bytes) -> None:
        """Find in new lines of the log which process is the trainer."""
        lines = self._line + data
        whole = lines.rfind(b"\n") + 1
        self._line = lines[whole:] if len(lines) - whole <= LONGEST_LINE else b""
        for line in _STARTED.findall(lines, 0, whole)[-1:]:
            with contextlib.suppress(ValueError):
                found = events.decode(line)
                self._started = found if isinstance(found, events.RunStarted) else self._started

    def _learn_of_old_copy(self) -> None:
        path = self.folder.events
        if far_side.LOG not in self._known or not path.is_file():
            return
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                self._learn(data)

    def _keep_time(self, path: Path, there: About) -> None:
        """Give the copy the far file's time, as this machine's clock would have told it."""
        if there.time:
            moment = there.time - self.status.clock_s
            with contextlib.suppress(OSError):
                os.utime(path, (moment, moment))
