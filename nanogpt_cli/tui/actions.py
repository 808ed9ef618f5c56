"""The actions behind the keys: the part of the dashboard that acts on its pages and its desk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual.app import App
from textual.geometry import Size
from textual.widgets import ContentSwitcher

from nanogpt_cli import shell
from nanogpt_cli.run.remote import status
from nanogpt_cli.tui import export, keys
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.dialogs import Ask, HelpScreen
from nanogpt_cli.tui.drawing import palette
from nanogpt_cli.tui.pages.page import Page
from nanogpt_cli.tui.state.session import RunSession

THEMES = ("textual-dark", "textual-light", "nord", "gruvbox", "tokyo-night", "solarized-light",
          "ansi-dark", "ansi-light")  # fmt: skip


@dataclass(frozen=True)
class DashboardExit:
    """How the dashboard was quit; ``stop`` means that the run was asked to stop.

    ``front`` is the run which was in front.
    """

    stop: bool = False
    front: RunSession | None = None


class DashboardActions(App[DashboardExit]):
    """One method per key, named ``action_...`` as Textual requires.

    Attributes:
        desk: the state that all pages share.
        still: whether a single picture is drawn, in which nothing has the focus.
        notice_rows: rows that the next notice may take.
    """

    desk: Desk
    still: bool
    notice_rows = 1

    def __init__(self) -> None:
        super().__init__()
        self._laid_out: dict[str, Size] = {}  # sizes of the screen, by page

    @property
    def page(self) -> Page:
        """The page in front."""
        raise NotImplementedError

    def draw(self, force: bool = False) -> None:
        """Draw the header, and the page if there is anything new."""
        raise NotImplementedError

    def look_now(self) -> None:
        """Read the log now, without waiting for the next poll."""
        raise NotImplementedError

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Allow only the actions that mean something on the page in front."""
        if self.is_running and action in _OURS and len(self.screen_stack) == 1:
            return action in keys.actions_on(self.page.id or "")
        return not (action in _OURS and len(self.screen_stack) > 1)

    def _redraw(self) -> None:
        self.draw(force=True)

    def action_page(self, name: str) -> None:
        """Bring a page to the front."""
        if name not in self.desk.pages:
            return
        if self.screen.maximized is not None:
            self.screen.minimize()
        self._bring(name)
        target = self.page.first_focus()
        if target is not None and not self.still:
            target.focus()
        self.draw(force=True)

    def lay_out_pages(self) -> None:
        """Let the panes of all pages know their sizes, so that the first picture is complete."""
        front = self.page.id or ""
        for name in (*self.desk.pages, front):
            self._bring(name)

    def _bring(self, name: str) -> None:
        """Put a page in front, and lay it out unless it was when the screen had this size."""
        self.query_one("#pages", ContentSwitcher).current = name
        if self._laid_out.get(name) == self.size:
            return
        self._laid_out[name] = self.size
        with self.batch_update():
            self.screen._refresh_layout()  # Textual itself would paint first what is there

    async def action_help(self) -> None:
        """Show all keys."""
        await self.push_screen(HelpScreen(self.page.id or "", self.desk))

    def action_zoom_pane(self) -> None:
        """Maximise the focused pane, or restore it."""
        if self.screen.maximized is not None:
            self.screen.minimize()
        elif self.focused is not None:
            self.screen.maximize(self.focused, container=False)
        self.call_after_refresh(self.draw, True)

    def action_leave(self) -> None:
        """Close what was opened last, else clear the filter, else remove the crosshair."""
        if self.screen.maximized is not None:
            self.screen.minimize()
        elif self.page.back():
            pass
        elif self.page.filter:
            self.page.set_filter("")
        else:
            self.desk.window.cursor = None
        self.call_after_refresh(self.draw, True)

    def action_zoom(self, factor: float) -> None:
        """Zoom the shared x axis."""
        if chart := self.page.chart():
            self.desk.window.zoom(factor, chart.full)
            self._redraw()

    def action_pan(self, steps: int) -> None:
        """Move the window by a tenth of its width, or the crosshair by a cell."""
        if chart := self.page.chart():
            window = self.desk.window
            if window.cursor is not None:
                width = chart.drawn.width if chart.drawn else chart.size.width
                window.move_cursor(steps, width, chart.full)
            else:
                window.pan(steps / 10, chart.full)
            self._redraw()

    def action_fit(self) -> None:
        """Show everything."""
        self.desk.window.fit()
        self._redraw()

    def action_follow(self) -> None:
        """Jump to the newest step and follow it."""
        if chart := self.page.chart():
            self.desk.window.to_end(chart.full)
            self._redraw()

    def action_crosshair(self) -> None:
        """Show the crosshair at the newest point, or remove it."""
        window, chart = self.desk.window, self.page.chart()
        if window.cursor is not None or chart is None:
            window.cursor = None
        else:
            window.cursor = window.range(chart.full)[1]
        self._redraw()

    def action_log_y(self) -> None:
        """Switch the focused chart's y axis between logarithmic and linear."""
        self._toggle("log_y")

    def action_robust(self) -> None:
        """Switch the exclusion of outliers from the y axis on or off."""
        self._toggle("robust")

    def _toggle(self, name: str) -> None:
        if chart := self.page.chart():
            chart.toggle(name)

    def action_freeze_y(self) -> None:
        """Freeze or release the y axis of the focused chart."""
        if chart := self.page.chart():
            chart.freeze()

    def action_log_x(self) -> None:
        """Switch the x axis of all charts between logarithmic and linear."""
        window = self.desk.window
        window.log = not window.log
        window.fit()
        self._redraw()

    def action_axis(self) -> None:
        """Switch to the next quantity on the x axis."""
        desk = self.desk
        desk.window.next_axis()
        if desk.window.axis == "flops" and not desk.view.steps.flops_per_token:
            desk.window.next_axis()
        self._redraw()

    def action_smooth(self, step: int) -> None:
        """Smooth more or less."""
        self.desk.smoother(step)
        self._redraw()

    def action_metric(self, step: int) -> None:
        """Show the page's next or previous statistic."""
        self._on_page(lambda page: page.metric(step))

    def action_row(self, step: int) -> None:
        """Next or previous row."""
        self._on_page(lambda page: page.row(step))

    def action_turn(self, step: int) -> None:
        """Next or previous page of a list."""
        self._on_page(lambda page: page.turn(step))

    def action_open(self) -> None:
        """Open the current row, and read a run that was opened."""
        self._on_page(lambda page: page.open())
        self.look_now()

    def action_alternate(self) -> None:
        """Show the other view of the page."""
        self._on_page(lambda page: page.alternate())

    def _on_page(self, call: Callable[[Any], None]) -> None:
        call(self.page)
        self.call_after_refresh(self.draw, True)

    async def action_filter(self) -> None:
        """Ask for a filter."""
        page = self.page

        def take(pattern: str | None) -> None:
            if pattern is not None:
                page.set_filter(pattern)
                self._redraw()

        hint = "text, glob* or /regex/; !not; several words must all match"
        await self.push_screen(Ask("filter", page.filter, hint), take)

    def action_color_map(self) -> None:
        """Next colour map."""
        desk, maps = self.desk, palette.COLOR_MAPS
        desk.color_map = maps[(maps.index(desk.color_map) + 1) % len(maps)]
        self._redraw()

    def action_normalise(self) -> None:
        """Colour each layer on its own scale, or all on one."""
        self.desk.normalise = not self.desk.normalise
        self._redraw()

    def action_hold(self) -> None:
        """Stop or continue drawing; reading always continues."""
        self.desk.held = not self.desk.held
        self._redraw()
        if not self.desk.held:
            self.look_now()

    def action_why(self) -> None:
        """Show the command that explains the chosen event, or the step under the crosshair."""
        step = self.page.step_in_question()
        folder = self.desk.session.folder.path
        there = status.read(folder)
        path = there.path if there else shell.path_word(folder)
        asked = shell.command("why", path, *([step] if step else []))
        where = f" on {there.host}" if there else ""
        self.notice_rows = 5  # half a command cannot be typed
        self.notify(asked, title=f"to explain it, type{where}", timeout=30)

    def action_theme(self) -> None:
        """Next theme."""
        known = [name for name in THEMES if name in self.available_themes]
        here = known.index(self.theme) if self.theme in known else -1
        self.theme = known[(here + 1) % len(known)]
        self.notify(self.theme, title="theme", timeout=2)
        self.call_after_refresh(self.draw, True)

    def action_export(self) -> None:
        """Save the focused pane: in the run's exports, or here if that is not to be written.

        A browser that may only read saves nothing at all: *here* is the server's folder.
        """
        if self.desk.readonly and self.is_web:
            self.notify("read-only: nothing is saved on the server", severity="warning")
            return
        folder = self.desk.session.folder
        # A run that is gone is not to come back as a folder of pictures.
        gone = not folder.path.is_dir()
        elsewhere = self.desk.readonly or gone or status.is_copy(folder.path)
        target = Path.cwd() if elsewhere else folder.exports
        try:
            paths = export.export_pane(self, target)
        except OSError as error:
            self.notify(str(error), title="not saved", severity="error")
            return
        names = " and ".join([str(paths[0]), *(path.name for path in paths[1:])])
        self.notify(names, title="saved")

    def action_detach(self) -> None:
        """Quit the dashboard, which the run does not notice."""
        self.exit(DashboardExit())


_OURS = {key.action.partition("(")[0] for key in keys.KEYS} - {"command_palette", "app.focus_next"}
