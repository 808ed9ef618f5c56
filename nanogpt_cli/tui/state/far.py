"""Sessions of runs on other machines: the copy is read like any run, the state judged from afar."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nanogpt_cli import units
from nanogpt_cli.run.folder import RunFolder, last_activity
from nanogpt_cli.run.remote import status
from nanogpt_cli.run.remote.status import Status
from nanogpt_cli.tui.state import liveness
from nanogpt_cli.tui.state.liveness import State, Told
from nanogpt_cli.tui.state.session import RunSession


def session(path: Path, **settings: Any) -> RunSession:
    """A session of a run folder, or of the copy of one on another machine."""
    return (FarSession if status.is_copy(path) else RunSession)(path, **settings)


def judge(view: Told, copy: RunFolder, there: Status, now: float) -> State:
    """The state of a trainer on another machine at ``now`` (seconds since the epoch) here.

    Args:
        view: what the log says.
        copy: the folder here.
        there: where it comes from, and how the connection is.
        now: the time here.
    """
    written = last_activity(copy) + there.clock_s
    state = liveness.judge(
        view, now + there.clock_s, there.alive, exists=there.exists, written=written
    )
    if view.ended is not None or not there.exists:
        return state
    if not there.connected:
        return State(f"cut off {there.cut}", "warning", there.reason, live=True)
    if there.trouble:
        return replace(state, word=f"{state.word} · a command failed", key="warning")
    return state


class FarSession(RunSession):
    """A session of a copied run folder. Neither process nor lock here tells whether it is alive."""

    _stamp: object = None
    _status: Status | None = None

    def status(self) -> Status | None:
        """Where the copy comes from, and how the connection is."""
        stamp = status.stamp(self.folder.path)
        if stamp != self._stamp:
            self._stamp, self._status = stamp, status.read(self.folder.path)
        return self._status

    def state(self) -> State:
        """The state of the trainer as the far machine tells it, in that machine's time."""
        there = self.status()
        if there is None or self.problem:
            return super().state()
        return judge(self.view, self.folder, there, self.clock())

    def problems(self) -> str:
        """Problems of the log and of the connection in words; empty if there are none."""
        there = self.status()
        found = [super().problems()]
        if there is not None:
            if not there.connected:
                found.append(f"no connection to {there.host} {there.cut}: {there.reason}")
            if there.clock_s:
                side = "ahead of" if there.clock_s > 0 else "behind"
                apart = units.duration(abs(there.clock_s))
                found.append(f"the clock of {there.host} is {apart} {side} this one")
            found += [there.trouble, there.unreadable]
        return " · ".join(filter(None, found))

    def send(self, name: str, argument: str = "") -> None:
        """Have a command passed on to the trainer.

        Raises:
            ConnectionError: there is no connection; a command that came later would surprise.
        """
        there = self.status()
        if there is None or not there.connected:
            since = f" {there.cut}" if there else ""
            raise ConnectionError(f"no connection to {there.host if there else 'the host'}{since}")
        super().send(name, argument)
