"""State that all pages share: the runs, the window on the x axis, and display settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nanogpt_cli.tui.keys import PAGES
from nanogpt_cli.tui.state import far
from nanogpt_cli.tui.state.history import SMOOTHING
from nanogpt_cli.tui.state.liveness import State
from nanogpt_cli.tui.state.session import RunSession
from nanogpt_cli.tui.state.view import RunView
from nanogpt_cli.tui.state.window import Window
from nanogpt_cli.tui.state.workspace import Workspace


@dataclass
class Desk:
    """Shared by all pages; the first session is the run that single-run pages show."""

    sessions: list[RunSession]
    workspace: Workspace
    window: Window = field(default_factory=Window)
    more_smoothing: int = 0  # the user's addition to the default level
    color_map: str = "cividis"
    normalise: bool = False
    statistic: str = "resid_rms"
    ascii_only: bool = False
    ramp: bool = False  # heat maps of characters, for pictures without colours
    readonly: bool = False
    live: bool = True  # whether logs and folder are followed; else it is a single picture
    held: bool = False
    pages: tuple[str, ...] = PAGES

    def __post_init__(self) -> None:
        """Remember the runs that were opened together, which is to compare them."""
        several = len(self.sessions) > 1
        self._together = set(self.sessions) if several else set()

    @property
    def session(self) -> RunSession:
        """The run in front."""
        return self.sessions[0]

    @property
    def compared(self) -> list[RunSession]:
        """The runs that Compare is about: those selected in the list, else all that are open."""
        chosen = self.workspace.selected
        return [s for s in self.sessions if not chosen or s.folder.path.resolve() in chosen]

    def bring(self, path: Path) -> None:
        """Bring a run to the front; the one that was there is closed unless something needs it."""
        here = self._opened(path)
        before = self.session
        self.sessions.remove(here)
        self.sessions.insert(0, here)
        self.window.cursor = None
        self.window.fit()
        self.held = self.held and here is before  # what was held is not in front any more
        if before is not here and not self._needed(before):
            self.sessions.remove(before)

    def keep(self, path: Path) -> None:
        """Open a run for Compare."""
        self._opened(path)

    def drop(self, path: Path) -> None:
        """Close a run that Compare needs no longer."""
        for session in self.sessions[1:]:
            if session.folder.path.resolve() == path and not self._needed(session):
                self.sessions.remove(session)

    def forget(self, path: Path) -> None:
        """Close a run that was deleted; the last one stays."""
        for session in list(self.sessions):
            if session.folder.path.resolve() == path and len(self.sessions) > 1:
                self.sessions.remove(session)

    def _opened(self, path: Path) -> RunSession:
        for session in self.sessions:
            if session.folder.path.resolve() == path:
                return session
        entry = self.workspace.entries.get(path)
        session = far.session(entry.run.path if entry else path, clock=self.session.clock)
        self.sessions.append(session)
        return session

    def _needed(self, session: RunSession) -> bool:
        """A child process must be polled, and Compare shows what was named or selected."""
        path = session.folder.path.resolve()
        return session.is_child or session in self._together or path in self.workspace.selected

    @property
    def view(self) -> RunView:
        """The view of the run in front."""
        return self.session.view

    @property
    def loading(self) -> bool:
        """Whether the log of a run has not been read to its end yet."""
        return any(session.loading for session in self.sessions)

    @property
    def smoothing(self) -> int:
        """Index into ``history.SMOOTHING``."""
        return min(len(SMOOTHING) - 1, max(0, self._default_smoothing() + self.more_smoothing))

    def smoother(self, step: int) -> None:
        """Smooth one level more (1) or less (-1), if there is one."""
        here = min(len(SMOOTHING) - 1, max(0, self.smoothing + step))
        self.more_smoothing = here - self._default_smoothing()

    def _default_smoothing(self) -> int:
        """The strongest level that averages at most a twentieth of the shortest run, up to ema .98.

        It depends on the planned steps of all opened runs, so that it is the same for all of them
        and neither zooming nor a new step changes a curve. In a run of 200 steps, .98 would lag far
        behind the loss.
        """
        planned = min((s.view.max_steps for s in self.sessions if s.view.max_steps), default=1000)
        fits = [
            i
            for i, beta in enumerate(SMOOTHING[:4])
            if beta == 0 or 1 / (1 - beta) <= planned / 20 + 1e-6
        ]
        return fits[-1]

    def state(self) -> State:
        """The state of the run in front."""
        return self.session.state()
