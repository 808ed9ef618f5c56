"""The dashboard: polling, pages and keys. Everything it shows comes from run folders."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding
from textual.notifications import SeverityLevel
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import ContentSwitcher

from nanogpt_cli import units
from nanogpt_cli.printable import encodes, printable
from nanogpt_cli.tui import header, keys, runs_table
from nanogpt_cli.tui.actions import DashboardExit
from nanogpt_cli.tui.compare import ComparePage
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.harmless import Harmless
from nanogpt_cli.tui.layers import LayersPage
from nanogpt_cli.tui.logs import LogsPage
from nanogpt_cli.tui.overview import OverviewPage
from nanogpt_cli.tui.page import Page
from nanogpt_cli.tui.plot import Row
from nanogpt_cli.tui.rows import RowsWidget
from nanogpt_cli.tui.run_actions import RunActions
from nanogpt_cli.tui.runs import RunsPage
from nanogpt_cli.tui.samples import SamplesPage
from nanogpt_cli.tui.session import Child, RunSession
from nanogpt_cli.tui.workspace import Workspace

FASTEST, SLOWEST, HELD = 0.25, 2.0, 5.0  # seconds between polls of the log
SHARE = 0.04  # share of one core that drawing may use


class Line(RowsWidget):
    """The header and the footer."""

    DEFAULT_CSS = "Line { height: 1; background: $panel; }"


class Dashboard(RunActions):
    """The view of one or more run folders."""

    TITLE = "nanogpt"
    CSS_PATH = "dashboard.tcss"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS = [  # noqa: RUF012
        (0, "-tiny"), (60, "-narrow"), (100, "-medium"), (120, "-wide"),
    ]  # fmt: skip
    VERTICAL_BREAKPOINTS = [  # noqa: RUF012
        (0, "-flat"), (12, "-short"), (22, "-normal"), (40, "-tall"),
    ]  # fmt: skip
    BINDINGS: ClassVar[list[Any]] = [
        Binding(key.keys, key.action, key.label, show=False, priority="ctrl+c" in key.keys)
        for key in keys.KEYS
        if not key.action.startswith("app.")
    ]

    def __init__(
        self,
        sessions: Sequence[RunSession],
        *,
        workspace: Workspace | None = None,
        readonly: bool = False,
        ascii_only: bool = False,
        theme: str | None = None,
        page: str = "overview",
        live: bool = True,
        still: bool = False,
        ramp: bool = False,
    ) -> None:
        super().__init__()
        self._filters.append(Harmless())
        self.still = still
        self.animation_level = "none" if still else self.animation_level
        first = sessions[0]
        workspace = workspace or Workspace(
            first.folder.path.resolve().parent, clock=first.clock, readonly=readonly
        )
        self.desk = Desk(
            list(sessions), workspace, ascii_only=ascii_only, ramp=ramp or ascii_only,
            readonly=readonly,
        )  # fmt: skip
        self.ascii_only = ascii_only
        self.start_page = page
        self.live = live
        self.ticks = 0
        self._next_look: Timer | None = None
        self.tick_cost = 0.0  # seconds of CPU one tick takes, averaged
        self._spent = time.process_time()
        self._drawn: object = None
        self._slow_due = 0.0
        self._draw_wanted = False
        self._notice: Row = []
        self._notice_ends: Timer | None = None
        if theme:
            self.theme = theme

    def compose(self) -> ComposeResult:
        """Yield header, pages and footer."""
        yield Line(id="header")
        with ContentSwitcher(initial=self.start_page, id="pages"):
            yield OverviewPage(self.desk, id="overview")
            yield LayersPage(self.desk, id="layers")
            yield ComparePage(self.desk, id="compare")
            yield SamplesPage(self.desk, id="samples")
            yield LogsPage(self.desk, id="logs")
            yield RunsPage(self.desk, id="runs")
        yield Line(id="footer")

    def on_mount(self) -> None:
        """Start polling the log."""
        self.screen.set_class(self.ascii_only, "-ascii")
        self.call_after_refresh(self._start)

    def _start(self) -> None:
        self.action_page(self.start_page)
        self.draw(force=True)
        if self.live:
            self._next_look = self.set_timer(0.05, self._tick)

    @property
    def page(self) -> Page:
        """The page in front."""
        name = self.query_one("#pages", ContentSwitcher).current or "overview"
        return self.query_one(f"#{name}", Page)

    def _tick(self) -> None:
        """Read, draw, and schedule the next poll so that drawing stays cheap."""
        loading = any(session.loading for session in self.desk.sessions)
        # The first poll is short, so that a first frame appears at once; the rest of a long log is
        # read in large pieces with little drawing in between.
        patience = 0.4 if loading and self.ticks else 0.1
        size = 1 << 22 if loading and self.ticks else 1 << 20
        for session in self.desk.sessions:
            session.poll(size, patience)
        done = loading and not any(session.loading for session in self.desk.sessions)
        if not self.desk.held:
            self.draw(force=done or not self.ticks)
        self.ticks += 1
        self._next_look = self.set_timer(0.01 if loading else self._next_interval(), self._tick)

    def look_now(self) -> None:
        """Poll now, e.g. when a held display is released."""
        if self._next_look is not None:
            self._next_look.stop()
            self._tick()

    def _next_interval(self) -> float:
        """Seconds until the next poll, so that this process (not only its polls) stays cheap."""
        now = time.process_time()
        self.tick_cost += 0.2 * (now - self._spent - self.tick_cost)
        self._spent = now
        if self.desk.held:
            return HELD
        return min(SLOWEST, max(FASTEST, self.tick_cost / SHARE))

    def draw(self, force: bool = False) -> None:
        """Draw the header, and the page if there is anything new."""
        if not self.is_running or not self.screen_stack:
            return
        now = time.monotonic()
        loading = any(session.loading for session in self.desk.sessions)
        slow = force or now >= self._slow_due
        if loading and not slow:
            return
        versions = tuple(session.view.version for session in self.desk.sessions)
        if force or versions != self._drawn or slow:
            self._draw_lines()
        if not force and versions == self._drawn and not self._page_is_restless():
            return
        if slow:
            self._slow_due = now + 1.0
            self._drawn = versions
        self.page.update(slow)

    def _page_is_restless(self) -> bool:
        """Whether the page changes without events: trainer output in the logs, or an empty run."""
        return self.page.id == "logs" or not len(self.desk.view.steps)

    def _draw_lines(self) -> None:
        top = self.query_one("#header", Line)
        name, sessions = self.page.id or "", self.desk.compared
        if name == "runs":
            row = runs_table.headline(self.desk.workspace, self.size.width)
        elif name == "compare" and len(sessions) > 1:
            runs = [(session.view.name, session.state()) for session in sessions]
            row = header.comparing(runs, self.size.width, ascii_only=self.ascii_only)
        else:
            row = header.header(
                self.desk.view, self.desk.state(), self.size.width, held=self.desk.held,
                ascii_only=self.ascii_only,
            )  # fmt: skip
        top.set_rows([row])
        bottom = self.query_one("#footer", Line)
        footer = keys.footer(name, self.size.width, self.desk.readonly)
        said = [(units.shortened(text, self.size.width), key) for text, key in self._notice]
        bottom.set_rows([said or footer])

    def request_draw(self) -> None:
        """Draw once soon, however many panes ask because their size has changed."""
        if not self._draw_wanted:
            self._draw_wanted = True
            self.call_after_refresh(self._draw_requested)

    def _draw_requested(self) -> None:
        self._draw_wanted = False
        self.draw(force=True)

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = False,  # noqa: ARG002
    ) -> None:
        """Show a notice in the bottom line for some seconds, where it covers no numbers."""
        text = printable(": ".join(filter(None, [title, " · ".join(message.splitlines())])))
        key = {"warning": "warning", "error": "error"}.get(severity, "title")
        self._notice = [(f" {text}", key)]
        if self._notice_ends is not None:
            self._notice_ends.stop()
        self._notice_ends = self.set_timer(timeout or 6.0, self._forget_notice)
        self._draw_lines()

    def _forget_notice(self) -> None:
        self._notice = []
        self._draw_lines()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:  # noqa: ARG002
        """Offer every key of the help by name in the command palette."""
        for key in keys.KEYS:
            if key.action == "command_palette" or key.action.startswith("app."):
                continue
            label = key.label[:1].upper() + key.label[1:]
            yield SystemCommand(label, f"{key.group}, key {key.shown}", self._runner(key.action))

    def _runner(self, action: str) -> Any:
        async def run() -> None:
            await self.run_action(action)

        return run


def run_dashboard(
    folders: Sequence[Path],
    *,
    readonly: bool = False,
    ascii_only: bool = False,
    theme: str | None = None,
    child: Child | None = None,
    page: str = "overview",
    workspace: Workspace | None = None,
) -> DashboardExit:
    """Open the dashboard on run folders and return how it was quit.

    It needs a terminal (see ``nanogpt_cli.tui.terminal``) and uses ASCII if the terminal's encoding
    has no braille. ``child`` is the trainer if it is a child process of this one; without polling
    it, a killed child would look alive for ever. ``workspace`` is the list of page Runs, by default
    the folder that the first run lies in.
    """
    ascii_only = ascii_only or not encodes("⣿─●", getattr(sys.__stderr__, "encoding", None))
    sessions = [
        RunSession(path, child=child if index == 0 else None) for index, path in enumerate(folders)
    ]
    app = Dashboard(
        sessions, workspace=workspace, readonly=readonly, ascii_only=ascii_only, theme=theme,
        page=page,
    )  # fmt: skip
    left = app.run() or DashboardExit()
    return replace(left, folder=app.desk.session.folder.path)
