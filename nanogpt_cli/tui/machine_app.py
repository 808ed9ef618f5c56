"""The System page of this machine, without a run: sampled while it is shown."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nanogpt_cli.printable import draws
from nanogpt_cli.run import events
from nanogpt_cli.system import Sampler
from nanogpt_cli.tui.app import Dashboard
from nanogpt_cli.tui.state import stepblocks
from nanogpt_cli.tui.state.liveness import State
from nanogpt_cli.tui.state.session import Piece, RunSession

EVERY = 1.0  # seconds between samples
# What a sample says of the process that takes it, which here is the dashboard.
_OWN = ("process_cpu", "rss", "children", "children_rss")


class MachineSession(RunSession):
    """This machine in place of a run: its events are the samples taken by ``read``.

    Args:
        sample: the fields of ``run.events.System`` that are known now.
        no_gpus: why GPUs are not sampled; "" if they are.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        sample: Callable[[], Mapping[str, Any]],
        no_gpus: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(Path.cwd(), clock=clock)
        self._sample, self._due, self.no_gpus = sample, 0.0, no_gpus
        self.loading = False
        self.view.name = platform.node() or "this machine"

    def read(self, max_bytes: int = 0) -> Piece:  # noqa: ARG002
        """Take a sample if one is due."""
        now = self.clock()
        if now < self._due:
            return Piece(stepblocks.parsed([]), at_end=True)
        self._due = now + EVERY
        known = {key: value for key, value in self._sample().items() if key not in _OWN}
        return Piece(stepblocks.parsed([events.System(time=now, step=0, **known)]), at_end=True)

    def state(self) -> State:
        """That it is being looked at."""
        return State("live", "ok", live=True)


def machine_dashboard(session: MachineSession, **settings: Any) -> Dashboard:
    """A dashboard that has the System page alone, over seconds; see ``Dashboard``."""
    app = Dashboard([session], page="system", pages=("system",), readonly=True, **settings)
    app.desk.window.axis, app.desk.window.axes = "time", ("time",)
    return app


def run_machine(stream: Any) -> None:
    """Show the page until it is left.

    Args:
        stream: the terminal; charts are drawn in ASCII where it has no braille.
    """
    sampler = Sampler(Path.cwd())
    no_gpus = sampler.nvml.why_not if sampler.nvml else ""
    try:
        session = MachineSession(sampler.sample, no_gpus)
        machine_dashboard(session, ascii_only=not draws(stream)).show()
    finally:
        sampler.close()
