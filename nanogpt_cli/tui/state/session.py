"""RunSession: follows one run folder, folds its events, and judges the trainer's state."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import printable
from nanogpt_cli.run.commands import send_command
from nanogpt_cli.run.folder import RunFolder, last_activity
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.run.process import process_alive
from nanogpt_cli.tui.state import liveness, stepblocks
from nanogpt_cli.tui.state.liveness import State
from nanogpt_cli.tui.state.view import RunView

TAIL_BYTES = 64 * 1024
_ENDING_BYTES = 1 << 20  # of a log; holds what still matters of an ending


class Child(Protocol):
    """The trainer as a child process of this one (``subprocess.Popen`` is one).

    Without polling it, a killed child would look alive for ever.
    """

    def poll(self) -> int | None:
        """The exit status, ``None`` while it runs."""


@dataclass(frozen=True)
class Piece:
    """What was read of a log in one go, parsed; ``restarted`` if what was read before is void."""

    found: stepblocks.Parsed
    at_end: bool
    restarted: bool = False


class RunSession:
    """A run folder, its view so far, and the way to send commands to its trainer.

    ``exact`` keeps texts as they are in the log, for programs; see ``RunView``. ``read`` may be
    called by another thread than everything else, as ``reader.Reader`` does; ``poll`` does both.
    """

    no_gpus = ""  # why GPUs are not sampled, where that is known

    def __init__(
        self,
        path: Path,
        *,
        child: Child | None = None,
        clock: Callable[[], float] = time.time,
        exact: bool = False,
    ) -> None:
        self.folder = RunFolder(path)
        self.clock = clock
        self.loading = True
        self.restarts = 0
        self.failure = ""  # why nothing is read any more; empty as long as it goes well
        self._child = child
        self._exact = exact
        self.reader = EventReader(self.folder.events)
        self.view = RunView(self.folder.name, exact=exact)

    @property
    def is_child(self) -> bool:
        """Whether the trainer is a child process, which must be polled as long as it runs."""
        return self._child is not None

    def read(self, max_bytes: int = 1 << 20) -> Piece:
        """Read and parse the next piece of the log, which changes nothing that is drawn."""
        batch = self.reader.read_blocks(max_bytes)
        restarted = self.reader.restarts > 0
        if restarted:
            self.reader = EventReader(self.folder.events)
            batch = self.reader.read_blocks(max_bytes)
        return Piece(stepblocks.parsed(batch), self.reader.at_end(), restarted)

    def fold(self, piece: Piece) -> None:
        """Put a piece into the view."""
        if piece.restarted:
            self.restarts += 1
            version = self.view.version
            self.view = RunView(self.folder.name, exact=self._exact)
            self.view.version = version + 1
        self.view.fold_parsed(piece.found)
        self.loading = self.loading and not piece.at_end

    def fail(self, error: Exception) -> None:
        """Note that reading has failed in a way that nobody foresaw, in one line."""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        self.failure = printable(f"cannot read {self.folder.events}: {text}", keep="")
        self.loading = False

    def poll(self, max_bytes: int = 1 << 20, max_seconds: float = 0.1) -> bool:
        """Read new events within the given bounds; returns whether anything changed."""
        version, deadline = self.view.version, time.monotonic() + max_seconds
        while True:
            piece = self.read(max_bytes)
            self.fold(piece)
            if piece.at_end or time.monotonic() > deadline:
                return self.view.version != version

    def finish(self, max_seconds: float = 0.2) -> None:
        """Read to the end what a dashboard has left unread; of much, only how it ends.

        Afterwards the state is known, and the last step, but curves may have a gap.
        """
        self.poll(max_seconds=max_seconds)
        if not self.reader.at_end():
            self.reader.skip_to(_ENDING_BYTES)
            self.poll(max_seconds=float("inf"))

    @property
    def problem(self) -> str:
        """Why the log cannot be read; empty if it can."""
        return self.failure or self.reader.problem

    def state(self) -> State:
        """The current state of the trainer, as far as it can be known."""
        if self.problem:
            return State("unreadable", "error", self.problem)
        exists = self.folder.path.is_dir()
        if self._child is not None:
            alive: bool | None = self._child.poll() is None
        else:
            alive = process_alive(self.folder, self.view.started)
        written = last_activity(self.folder)
        state = liveness.judge(self.view, self.clock(), alive, exists=exists, written=written)
        if not self.loading or self.view.ended is not None:
            return state
        reading = replace(state, word="reading", key="dim", detail="its log is being read")
        if self.view.version:
            return reading
        # Of a log with events none is known yet: the trainer may have ended long ago.
        if self._child is None and self._has_log():
            return replace(reading, live=False)
        return state

    def _has_log(self) -> bool:
        with contextlib.suppress(OSError):
            return self.folder.events.stat().st_size > 0
        return False

    def problems(self) -> str:
        """Problems of the log in words; empty if there are none."""
        bad = self.reader.bad_lines + self.view.bad_lines
        counted = (
            (self.restarts, "the log was replaced and read again"),
            (bad, "unreadable lines skipped"),
            (self.reader.unknown, "events of an unknown kind skipped"),
            (self.view.steps.out_of_order, "steps out of order skipped"),
        )
        found = [f"{text}: {count}" for count, text in counted if count]
        return " · ".join([self.problem] * bool(self.problem) + found)

    def output(self) -> str:
        """The end of the trainer's output."""
        try:
            with foreign_files.opened(self.folder.stdout) as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - TAIL_BYTES))
                text = file.read(TAIL_BYTES).decode("utf-8", "replace")
                return printable(text.replace("\r\n", "\n"))
        except (UserError, OSError):
            return ""

    def send(self, name: str, argument: str = "") -> None:
        """Send a command to the trainer."""
        send_command(self.folder, name, argument)
