"""Entry: one run of a list: its summary, its notes, and the state of its trainer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nanogpt_cli import foreign_files, parsing
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import notes, query
from nanogpt_cli.run.folder import RunFolder, last_activity
from nanogpt_cli.run.process import process_alive
from nanogpt_cli.run.remote import status
from nanogpt_cli.run.summaries import Summary
from nanogpt_cli.tui.state import far, liveness
from nanogpt_cli.tui.state.liveness import State

AGAIN = 10.0  # seconds until the process of a run that looked dead is looked for again


class Entry:
    """One run of a list.

    Attributes:
        run: its folder; ``path`` is its absolute path.
        summary: what its log says, as far as it was read.
        notes: what its user says.
        state: the state of its trainer.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.path: Path = run.path.resolve()
        self.name = run.name
        self.summary = Summary(run)
        self.notes = notes.Notes()
        self.state = State("…", "dim")
        self.read = False
        self.recipe: Mapping[str, Any] = {}
        self._told: object = None
        self._noted: object = None
        self._judged = -math.inf

    def refresh(self, now: float) -> bool:
        """Read what is new in log and notes, and judge the state; returns whether it changed."""
        changed = self.summary.refresh() or not self.read
        started = self.summary.started
        if started is not self._told or not self.read:
            self._told = started
            self.recipe = query.flat((started and started.recipe) or _recipe_file(self.run))
        self.read = True
        changed = self._read_notes() or changed
        if changed or self.state.live or now - self._judged > AGAIN:
            before, self.state, self._judged = self.state, self._judge(now), now
            changed = changed or before != self.state
        return changed

    def _read_notes(self) -> bool:
        try:
            about = self.run.notes.stat()
            stamp: object = (about.st_ino, about.st_size, about.st_mtime_ns)
        except OSError:
            stamp = None
        if stamp == self._noted:
            return False
        self._noted = stamp
        self.notes = notes.read(self.run) if stamp else notes.Notes()
        return True

    def _judge(self, now: float) -> State:
        if self.summary.problem:
            return State("unreadable", "error", self.summary.problem)
        if there := status.read(self.run.path):
            return far.judge(self.summary, self.run, there, now)
        if self.summary.ended is not None:
            return liveness.judge(self.summary, now, None)
        alive = process_alive(self.run, self.summary.started)
        exists, written = self.path.is_dir(), last_activity(self.run)
        return liveness.judge(self.summary, now, alive, exists=exists, written=written)

    def values(self, now: float) -> dict[str, Any]:
        """What a query can ask for; see ``run/query.py``."""
        summary, state = self.summary, self.state
        kinds = ("live", "running" if state.key == "ok" else "") if state.live else ("ended",)
        found = dict(self.recipe)
        found |= {
            "name": self.name, "state": (state.word, *filter(None, kinds)),
            "tag": self.notes.tags, "note": self.notes.note, "step": summary.step,
            "loss": summary.last_step.loss if summary.last_step else None, "best": summary.best,
            "speed": self.speed, "alarms": len(summary.alarms), "age": self.age(now),
            "parameters": self.parameters,
        }  # fmt: skip
        return found

    @property
    def parameters(self) -> int | None:
        """Parameters of the model; ``None`` if unknown."""
        known = self.summary.started or self.summary.imported
        return known.parameters if known else None

    @property
    def speed(self) -> float | None:
        """Tokens per second of the last steps; ``None`` if unknown."""
        return self.summary.speed if math.isfinite(self.summary.speed) else None

    def age(self, now: float) -> float | None:
        """Seconds since the run began; ``None`` if that is unknown."""
        return max(0.0, now - self.summary.began) if self.summary.began else None


def _recipe_file(run: RunFolder) -> dict[str, Any]:
    """The recipe of a run whose log does not tell it, such as an imported one."""
    try:
        return parsing.parse_toml(foreign_files.read_text(run.recipe, parsing.LARGEST_RECIPE * 4))
    except (UserError, ValueError):
        return {}


def recipe_keys(entries: Iterable[Entry]) -> set[str]:
    """Every key of the recipes of some runs."""
    return {key for entry in entries for key in entry.recipe}
