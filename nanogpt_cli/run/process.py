"""Whether a run's trainer is alive, judged from its process and its lock, without waiting."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder


def process_alive(run: RunFolder, started: events.RunStarted | None) -> bool | None:
    """Whether the trainer's process is running; ``None`` if that cannot be known from here."""
    if started is None:
        return locked(run.lock) or None  # the lock is taken before the first event is written
    if not started.pid or started.host != socket.gethostname():
        return None
    if not _pid_alive(started.pid):
        return False
    return locked(run.lock) is not False


def _pid_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:  # a zombie still has its process id but is dead
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[:1] != ["Z"]


def locked(path: Path) -> bool | None:
    """Whether a process holds the run's lock; the process id may have been reused by another."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        with foreign_files.opened(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except UserError:
        return None
    except OSError:
        return True
    return False
