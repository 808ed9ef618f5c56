"""The dashboard: polling, pages and keys. Everything it shows comes from run folders."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from rich.cells import cell_len, chop_cells
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding
from textual.events import Event, InputEvent, MouseMove
from textual.notifications import SeverityLevel
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import ContentSwitcher

from nanogpt_cli import units
from nanogpt_cli.printable import draws, printable
from nanogpt_cli.run import news
from nanogpt_cli.tui import header, keys, terminal
from nanogpt_cli.tui.actions import DashboardExit
from nanogpt_cli.tui.bell import Bell
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.drawing.plot import Row
from nanogpt_cli.tui.harmless import Harmless
from nanogpt_cli.tui.mouse import MouseActions
from nanogpt_cli.tui.pages import runs_table
from nanogpt_cli.tui.pages.compare import ComparePage
from nanogpt_cli.tui.pages.layers import LayersPage
from nanogpt_cli.tui.pages.logs import LogsPage
from nanogpt_cli.tui.pages.overview import OverviewPage
from nanogpt_cli.tui.pages.page import Page
from nanogpt_cli.tui.pages.runs import RunsPage
from nanogpt_cli.tui.pages.samples import SamplesPage
from nanogpt_cli.tui.pages.system import SystemPage
from nanogpt_cli.tui.state.reader import REST, Reader
from nanogpt_cli.tui.state.session import Piece, RunSession
from nanogpt_cli.tui.state.workspace import Workspace
from nanogpt_cli.tui.swift import OneScreen, settled, swift
from nanogpt_cli.tui.widgets.panes import wrap
from nanogpt_cli.tui.widgets.rows import RowsWidget

FASTEST, SLOWEST, HELD = 0.25, 2.0, 5.0  # seconds between two looks at the log
SHARE = 0.02  # share of one core that the dashboard may use
FOLDING = 0.008  # seconds of folding after which a key that was pressed has its turn


_PAGES: dict[str, type[Page]] = {
    "overview": OverviewPage, "layers": LayersPage, "compare": ComparePage, "samples": SamplesPage,
    "logs": LogsPage, "system": SystemPage, "runs": RunsPage,
}  # fmt: skip


class Line(RowsWidget):
    """The header and the footer."""

    DEFAULT_CSS = "Line { height: 1; background: $panel; }"


class Dashboard(MouseActions):
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
        bell: str = "",
        pages: tuple[str, ...] = keys.PAGES,
    ) -> None:
        super().__init__()
        self._bell = Bell(bell)
        self._filters.append(Harmless())
        self.still = still
        self.animation_level = "none" if still else self.animation_level
        first = sessions[0]
        workspace = workspace or Workspace(
            first.folder.path.resolve().parent, clock=first.clock, readonly=readonly
        )
        self.desk = Desk(
            list(sessions), workspace, ascii_only=ascii_only, ramp=ramp or ascii_only,
            readonly=readonly, live=live, pages=pages,
        )  # fmt: skip
        self.ascii_only = ascii_only
        self.start_page = page
        self.reader = Reader(self.desk.sessions, self._on_arrival) if live else None
        self.looks = 0  # times that something new was folded and drawn
        self._next_look: Timer | None = None
        self._folding_due = self._answering = self._waited = False
        self.look_cost = 0.0  # seconds of CPU from one look to the next, averaged
        self._spent = time.process_time()
        self._drawn: object = None
        self._slow_due = 0.0
        self._draw_wanted = False
        self._notice, self._notice_key, self._notice_most = "", "title", 1
        self._notice_ends: Timer | None = None
        if theme:
            self.theme = theme

    def get_default_screen(self) -> Screen[Any]:
        """A screen whose focus moves without painting everything."""
        return OneScreen(id="_default")

    def compose(self) -> ComposeResult:
        """Yield header, pages and footer."""
        yield Line(id="header")
        with ContentSwitcher(initial=self.start_page, id="pages"):
            for name in self.desk.pages:
                yield _PAGES[name](self.desk, id=name)
        yield Line(id="footer")

    def show(self) -> DashboardExit:
        """Open it on the terminal, until it is left.

        Raises:
            Exception: whatever ended it otherwise.
        """
        self.desk.ramp = self.desk.ramp or not terminal.has_shades(self.console)
        with swift():
            left = self.run()
        if self._exception is not None:
            raise self._exception
        return left or DashboardExit()

    def _fatal_error(self) -> None:
        """Close; who called ``show`` reports the error, and Textual none of its pages."""
        self._close_messages_no_wait()

    def on_mount(self) -> None:
        """Start polling the log."""
        self.screen.set_class(self.ascii_only, "-ascii")
        self.call_after_refresh(self._start)

    def _start(self) -> None:
        self.lay_out_pages()
        self.call_after_refresh(self._begin)  # when those that were hidden again have noticed

    def _begin(self) -> None:
        self.action_page(self.page.id or "")  # a key may have chosen another one by now
        self.draw(force=True)
        if not self.is_headless:
            settled()
        if self.reader is not None:
            self.reader.start()

    def on_unmount(self) -> None:
        """Stop reading, be it in the middle of a log."""
        if self.reader is None:
            return
        self.reader.stop()
        while (taken := self.reader.take()) is not None:
            session, found = taken
            if isinstance(found, Piece):
                session.fold(found)

    @property
    def page(self) -> Page:
        """The page in front."""
        name = self.query_one("#pages", ContentSwitcher).current or "overview"
        return self.query_one(f"#{name}", Page)

    async def on_event(self, event: Event) -> None:
        """Answer keys before reading on."""
        moved = isinstance(event, MouseMove) and not event.button  # which asks for nothing
        if self.reader is not None and isinstance(event, InputEvent) and not moved:
            self._answering = True
            self.reader.rest()
        await super().on_event(event)

    def _on_arrival(self) -> None:
        """Have what was read folded; called by the reader's thread."""
        if not self._folding_due:
            self._folding_due = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody looks any more
                self.call_later(self._fold)

    def _fold(self) -> None:
        """Fold what has been read and draw it; ask for more once all of it is there."""
        if self.reader is None:
            return
        if self._answering and not self._waited:  # once, so that a key held down does not stop it
            self._waited = True
            self.set_timer(REST, self._fold)
            return
        self._folding_due = self._answering = self._waited = False
        was_loading, ends = self.desk.loading, time.monotonic() + FOLDING
        while (taken := self.reader.take()) is not None:
            self._take(*taken)
            if time.monotonic() > ends:
                self._folding_due = True
                self.set_timer(0.001, self._fold)
                break
        self._ring()
        if not self.desk.held:
            self.draw(force=not self.looks or (was_loading and not self.desk.loading))
        self.looks += 1
        closing = not self.is_running or not self.screen_stack
        if self._next_look is None and self.reader.idle and not closing:
            self._next_look = self.set_timer(self._next_interval(), self.look_now)

    def _take(self, session: RunSession, found: Piece | Exception) -> None:
        if isinstance(found, Piece):
            session.fold(found)
            return
        session.fail(found)
        self.notify(session.failure, severity="error", timeout=60)

    def _ring(self) -> None:
        """Tell the terminal what is new, in the form that was asked for."""
        for bell, text in self._bell.listen(self.desk.sessions):
            if self._driver is not None:
                self._driver.write(news.sequence(bell, text))

    def look_now(self) -> None:
        """Look at the logs now, e.g. when a held display is released."""
        if self.reader is not None:
            if self._next_look is not None:
                self._next_look.stop()
            self._next_look = None
            self.reader.ask()

    def _next_interval(self) -> float:
        """Seconds until the next look, so that this process (not only its looks) stays cheap."""
        now = time.process_time()
        self.look_cost += 0.2 * (now - self._spent - self.look_cost)
        self._spent = now
        if self.desk.held:
            return HELD
        if self.page.id == "runs":  # it reads the ends of the logs itself
            return SLOWEST
        return min(SLOWEST, max(FASTEST, self.look_cost / SHARE))

    def draw(self, force: bool = False) -> None:
        """Draw the header, and the page if there is anything new."""
        if not self.is_running or not self.screen_stack:
            return
        now = time.monotonic()
        slow = force or now >= self._slow_due
        if self.desk.loading and not slow:
            return
        versions = tuple(session.view.version for session in self.desk.sessions)
        new = versions != self._drawn
        # The list of runs draws itself when its folder has changed.
        if force or ((new or self._page_is_restless()) and self.page.id != "runs"):
            if slow:
                self._slow_due = now + 1.0
                self._drawn = versions
            self.page.update(slow)
        if force or new or slow:
            self._draw_lines()

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
        rows = self._notice_rows() or [self.footer()]
        bottom.styles.height = len(rows)
        bottom.set_rows(rows)

    def footer(self) -> Row:
        """The pages and keys in the bottom line; empty while a notice stands there."""
        if self._notice:
            return []
        page = self.page.id or ""
        return keys.footer(page, self.size.width, self.desk.readonly, self.desk.pages)

    def _notice_rows(self) -> list[Row]:
        """The notice, on as many rows as it may take, else shortened."""
        width = max(self.size.width - 1, 1)
        lines = wrap(self._notice, width) if self._notice else []
        if len(lines) > self._notice_most:
            lines = chop_cells(self._notice, width)
        if len(lines) > self._notice_most:
            lines = [units.shortened(self._notice, width, cell_len)]
        return [[(f" {line}", self._notice_key)] for line in lines]

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
        """Show a notice in the bottom line for some seconds, where it covers no numbers.

        One that needs more rows than ``notice_rows`` is shortened; the next one has one row again.
        """
        text = printable(": ".join(filter(None, [title, " · ".join(message.splitlines())])))
        key = {"warning": "warning", "error": "error"}.get(severity, "title")
        self._notice, self._notice_key = text, key
        self._notice_most, self.notice_rows = self.notice_rows, 1
        if self._notice_ends is not None:
            self._notice_ends.stop()
        self._notice_ends = self.set_timer(timeout or 6.0, self._forget_notice)
        self._draw_lines()

    def _forget_notice(self) -> None:
        self._notice = ""
        self._draw_lines()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:  # noqa: ARG002
        """Offer every key of the help by name in the command palette."""
        for key in keys.KEYS:
            if key.action == "command_palette" or key.action.startswith("app."):
                continue
            if not keys.offered(key, self.page.id or "", self.desk.readonly, self.desk.pages):
                continue
            label = key.label[:1].upper() + key.label[1:]
            yield SystemCommand(label, f"{key.group}, key {key.shown}", self._runner(key.action))

    def _runner(self, action: str) -> Any:
        async def run() -> None:
            await self.run_action(action)

        return run


def run_dashboard(
    sessions: Sequence[RunSession],
    *,
    readonly: bool = False,
    ascii_only: bool = False,
    theme: str | None = None,
    page: str = "overview",
    bell: str = "",
    workspace: Workspace | None = None,
) -> DashboardExit:
    """Open the dashboard on runs and return how it was quit; the sessions keep what was read.

    It needs a terminal (see ``nanogpt_cli.tui.terminal``) and uses ASCII if that has no braille.
    ``workspace`` is the list of page Runs, by default the folder that the first run
    lies in.
    """
    ascii_only = ascii_only or not draws(sys.__stderr__)
    app = Dashboard(
        sessions, workspace=workspace, readonly=readonly, ascii_only=ascii_only, theme=theme,
        page=page, bell=bell,
    )  # fmt: skip
    return replace(app.show(), front=app.desk.session)
