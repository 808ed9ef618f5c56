"""``mirror.json`` in a copied run folder: where it comes from and how the connection is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nanogpt_cli import files, foreign_files
from nanogpt_cli.errors import UserError

_FILE = "mirror.json"


@dataclass(frozen=True)
class Status:
    """What is known of a run on another machine beside the copied files.

    Attributes:
        address: as the user wrote it.
        host: the far machine, as the user calls it.
        path: of the run there.
        connected: whether there is a connection.
        since: since when there is one or none, in seconds since the epoch on this machine's clock.
        reason: why there is none.
        control: whether commands for the trainer are passed on.
        exists: whether the run folder is there.
        alive: whether the trainer's process is running; ``None`` if that cannot be known.
        clock_s: seconds by which the far clock is ahead of this one.
        trouble: what became of the last command, unless it was taken.
        unreadable: why a file of the run cannot be copied.
        known: of each copied file, its inode there and the offset at which the copy begins.
    """

    address: str
    host: str
    path: str = ""
    connected: bool = False
    since: float = 0.0
    reason: str = ""
    control: bool = False
    exists: bool = True
    alive: bool | None = None
    clock_s: float = 0.0
    trouble: str = ""
    unreadable: str = ""
    known: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def cut(self) -> str:
        """Since when there is no connection, in words."""
        moment = time.localtime(self.since)
        today = moment[:3] == time.localtime()[:3]
        return f"since {time.strftime('%H:%M:%S' if today else '%Y-%m-%d %H:%M', moment)}"


def is_copy(folder: Path) -> bool:
    """Whether a run folder is the copy of one on another machine."""
    return (folder / _FILE).is_file()


def stamp(folder: Path) -> object:
    """What changes whenever the status is written."""
    try:
        about = (folder / _FILE).stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def read(folder: Path) -> Status | None:
    """The status of a copy; ``None`` for an ordinary run folder, or if it cannot be read."""
    try:
        values = foreign_files.read_object(folder / _FILE)
        return _checked(values)
    except (UserError, ValueError, TypeError, AttributeError, LookupError):
        return None


def _checked(values: dict[str, Any]) -> Status:
    names = {field.name for field in fields(Status)}
    known = {str(k): (int(v[0]), int(v[1])) for k, v in values.pop("known", {}).items()}
    status = Status(**{k: v for k, v in values.items() if k in names}, known=known)
    numbers = {"since": float | int, "clock_s": float | int, "alive": bool | None}
    for name in names - {"known", "connected", "control", "exists"}:
        if not isinstance(getattr(status, name), numbers.get(name, str)):
            raise TypeError(name)
    return status


def write(folder: Path, status: Status) -> None:
    """Replace the status of a copy.

    Raises:
        OSError: the operating system refuses.
    """
    files.write_json(folder / _FILE, asdict(status))
