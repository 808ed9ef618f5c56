"""Writing a run's event log: whole lines, visible at once."""

from __future__ import annotations

import os
from pathlib import Path

from nanogpt_cli import files, foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.follow import LONGEST_LINE


class EventWriter:
    """Appends events to a log: each line in one ``write``, visible at once to readers.

    A torn last line left by a killed writer is cut off before the first append.

    Raises:
        UserError: what is there is not a regular file, not a log, or cannot be read and written.
    """

    def __init__(self, path: Path) -> None:
        with files.readable_os_errors("write the event log", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if foreign_files.present(path):
                foreign_files.check(path)  # opening a named pipe would wait for a reader
                _cut_torn_line(path)
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def __call__(self, event: events.Event) -> None:
        """Append one event."""
        data = (events.encode(event) + "\n").encode("utf-8")
        while data:
            data = data[os.write(self._fd, data) :]

    def sync(self) -> None:
        """Wait until the log is on the disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cut_torn_line(path: Path) -> None:
    """Drop what follows the last newline."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            start = max(0, position - 65536)
            file.seek(start)
            block = file.read(position - start)
            found = block.rfind(b"\n")
            if found >= 0:
                position = start + found + 1
                break
            position = start
            if end - position > LONGEST_LINE:
                raise UserError(
                    f"{path} is not an event log: its last line has more than {LONGEST_LINE:,} "
                    "bytes",
                    "move it away; the run can go on without it",
                )
        if position != end:
            file.truncate(position)
