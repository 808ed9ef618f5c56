"""Whether a run is alive, judged from its log, its process and its lock, without waiting."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from nanogpt_cli import foreign_files, units
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.tui.view import RunView

_ENDINGS = {
    "finished": ("finished", "ok"),
    "stopped": ("stopped", "ok"),
    "early_stop": ("stopped early", "ok"),
    "non_finite": ("stopped: not finite", "error"),
    "diverged": ("diverged", "error"),
    "error": ("failed", "error"),
}
QUIET = 30.0  # seconds without a log line before a run may count as stalled


@dataclass(frozen=True)
class State:
    """One word for the header, its colour key, and a detail in words."""

    word: str
    key: str
    detail: str = ""
    live: bool = False

    @property
    def symbol(self) -> str:
        """A symbol for the state, so that it is not told by colour alone."""
        return {"ok": "●", "warning": "▲", "error": "✖", "dim": "○"}[self.key]


def judge(
    view: RunView,
    now: float,
    alive: bool | None,
    *,
    exists: bool = True,
    written: float = math.inf,
) -> State:
    """The state at ``now`` (seconds since the epoch).

    Args:
        view: what the log says.
        now: the time.
        alive: whether the trainer's process is running; ``None`` if that cannot be known, for
            instance because it ran on another machine.
        exists: whether the run folder is there.
        written: when something was last written to it; matters as long as no training has begun.
    """
    if view.ended is not None:
        word, key = _ENDINGS.get(view.ended.reason, (view.ended.reason, "warning"))
        return State(word, key, view.ended.message)
    if not exists:
        return State("folder gone", "error", "the run folder does not exist any more")
    if alive is False:
        return State("crashed", "error", "the trainer's process ended without a final event")
    if view.started is None and not len(view.steps):
        if alive is None and view.imported is not None:
            detail = f"from {view.imported.source}; nothing was trained here"
            return State("imported", "dim", detail)
        if alive is None and now - written > QUIET:  # a start that failed
            return State("idle", "dim", "no trainer is at work on it")
        return State("waiting", "dim", "no event yet", live=True)
    quiet = now - view.last_time
    limit = max(QUIET, 10 * _pace(view))
    if view.stopping:
        return State("stopping", "warning", "it saves a checkpoint first", live=True)
    if view.paused:
        return State("paused", "warning", "training waits; P resumes it", live=True)
    if quiet > limit:
        detail = f"nothing written for {units.duration(quiet)}"
        return State("stalled" if alive else "silent", "warning", detail, live=bool(alive))
    if view.diverged:
        return State("diverging", "error", "the loss is far above its previous level", live=True)
    return State(view.doing or "running", "ok", live=True)


def _pace(view: RunView) -> float:
    pace = view.steps.recent("step_s")
    return pace if pace == pace else 0.0


def process_alive(run: RunFolder, started: events.RunStarted | None) -> bool | None:
    """Whether the trainer's process is running; ``None`` if that cannot be known from here."""
    if started is None:
        return _locked(run.lock) or None  # the lock is taken before the first event is written
    if not started.pid or started.host != socket.gethostname():
        return None
    if not _pid_alive(started.pid):
        return False
    return _locked(run.lock) is not False


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


def _locked(path: Path) -> bool | None:
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
