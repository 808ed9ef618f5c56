"""What the pages share: the runs, the window on the x axis, and how to look at things."""

from __future__ import annotations

from dataclasses import dataclass, field

from nanogpt_cli.tui.liveness import State
from nanogpt_cli.tui.session import RunSession
from nanogpt_cli.tui.view import RunView
from nanogpt_cli.tui.window import Window


@dataclass
class Desk:
    """Shared by all pages; the first session is the run that single-run pages show."""

    sessions: list[RunSession]
    window: Window = field(default_factory=Window)
    smoothing: int = 3  # index into ``history.SMOOTHING``
    color_map: str = "cividis"
    normalise: bool = False
    statistic: str = "resid_rms"
    ascii_only: bool = False
    readonly: bool = False
    held: bool = False

    @property
    def session(self) -> RunSession:
        """The run in front."""
        return self.sessions[0]

    @property
    def view(self) -> RunView:
        """Its view."""
        return self.session.view

    def state(self) -> State:
        """Its state."""
        return self.session.state()
