"""The state of a run in a word, judged from what its log says and whether its process lives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from nanogpt_cli import units
from nanogpt_cli.run import events

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


class Told(Protocol):
    """What a log says of its run, as far as the state depends on it."""

    @property
    def started(self) -> events.RunStarted | None: ...  # noqa: D102
    @property
    def imported(self) -> events.RunImported | None: ...  # noqa: D102
    @property
    def ended(self) -> events.RunEnded | None: ...  # noqa: D102
    @property
    def has_steps(self) -> bool: ...  # noqa: D102
    @property
    def pace(self) -> float: ...  # noqa: D102
    @property
    def last_time(self) -> float: ...  # noqa: D102
    @property
    def doing(self) -> str: ...  # noqa: D102
    @property
    def paused(self) -> bool: ...  # noqa: D102
    @property
    def stopping(self) -> bool: ...  # noqa: D102
    @property
    def diverged(self) -> bool: ...  # noqa: D102


def judge(
    view: Told,
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
    if view.started is None and not view.has_steps:
        if alive is None and view.imported is not None:
            detail = f"from {view.imported.source}; nothing was trained here"
            return State("imported", "dim", detail)
        if alive is None and now - written > QUIET:  # a start that failed
            return State("idle", "dim", "no trainer is at work on it")
        return State("waiting", "dim", "no event yet", live=True)
    quiet = now - view.last_time
    limit = max(QUIET, 10 * view.pace)
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
