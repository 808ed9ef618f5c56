"""RunSession: follows one run folder, folds its events, and judges the trainer's state."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import printable
from nanogpt_cli.run.commands import send_command
from nanogpt_cli.run.folder import RunFolder, last_activity
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.run.process import process_alive
from nanogpt_cli.tui import liveness
from nanogpt_cli.tui.liveness import State
from nanogpt_cli.tui.view import RunView

TAIL_BYTES = 64 * 1024


class Child(Protocol):
    """The trainer as a child process (``subprocess.Popen`` is one)."""

    def poll(self) -> int | None:
        """The exit status, ``None`` while it runs."""


class RunSession:
    """A run folder, its view so far, and the way to send commands to its trainer.

    ``exact`` keeps texts as they are in the log, for programs; see ``RunView``.
    """

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
        self._child = child
        self._exact = exact
        self._fresh()

    @property
    def is_child(self) -> bool:
        """Whether the trainer is a child process, which must be polled as long as it runs."""
        return self._child is not None

    def _fresh(self) -> None:
        self.reader = EventReader(self.folder.events)
        self.view = RunView(self.folder.name, exact=self._exact)

    def poll(self, max_bytes: int = 1 << 20, max_seconds: float = 0.1) -> bool:
        """Read new events within the given bounds; returns whether anything changed."""
        version, deadline = self.view.version, time.monotonic() + max_seconds
        while True:
            batch = self.reader.read_blocks(max_bytes)
            if self.reader.restarts:
                self.restarts += 1
                self._fresh()
                self.view.version = version + 1
                continue
            self.view.fold_many(batch)
            if self.reader.at_end():
                self.loading = False
                break
            if time.monotonic() > deadline:
                break
        return self.view.version != version

    def state(self) -> State:
        """The current state of the trainer, as far as it can be known."""
        if self.reader.problem:
            return State("unreadable", "error", self.reader.problem)
        exists = self.folder.path.is_dir()
        if self._child is not None:
            alive: bool | None = self._child.poll() is None
        else:
            alive = process_alive(self.folder, self.view.started)
        written = last_activity(self.folder)
        return liveness.judge(self.view, self.clock(), alive, exists=exists, written=written)

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
        return " · ".join([self.reader.problem] * bool(self.reader.problem) + found)

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
