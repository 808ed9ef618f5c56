"""What the keys do. Mixed into the app, which knows the pages and the desk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from textual.widgets import ContentSwitcher

from nanogpt_cli.tui import export, keys, palette
from nanogpt_cli.tui.dialogs import Ask, Confirm, HelpScreen

if TYPE_CHECKING:
    from nanogpt_cli.tui.app import Dashboard

THEMES = ("textual-dark", "textual-light", "nord", "gruvbox", "tokyo-night", "solarized-light",
          "ansi-dark", "ansi-light")  # fmt: skip


class DashboardActions:
    """One method a key, named ``action_...`` as Textual wants it."""

    @property
    def _app(self) -> Dashboard:
        return self  # type: ignore[return-value]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Only what means something on the page in front."""
        app = self._app
        if app.is_running and action in _OURS and len(app.screen_stack) == 1:
            return action in keys.actions_on(app.page.id or "")
        return not (action in _OURS and len(app.screen_stack) > 1)

    def _redraw(self) -> None:
        self._app.draw(force=True)

    def action_page(self, name: str) -> None:
        """Bring a page to the front."""
        app = self._app
        app.screen.minimize()
        app.query_one("#pages", ContentSwitcher).current = name
        target = app.page.first_focus()
        if target is not None and not app.still:
            target.focus()
        app.call_after_refresh(app.draw, True)

    async def action_help(self) -> None:
        """All keys."""
        await self._app.push_screen(HelpScreen(self._app.page.id or "", self._app.desk.readonly))

    def action_zoom_pane(self) -> None:
        """Maximise the focused pane, or go back."""
        app = self._app
        if app.screen.maximized is not None:
            app.screen.minimize()
        elif app.focused is not None:
            app.screen.maximize(app.focused, container=False)
        app.call_after_refresh(app.draw, True)

    def action_leave(self) -> None:
        """Undo the last opening, then the filter, then the crosshair."""
        app = self._app
        if app.screen.maximized is not None:
            app.screen.minimize()
        elif app.page.back():
            pass
        elif app.page.filter:
            app.page.set_filter("")
        else:
            app.desk.window.cursor = None
        app.call_after_refresh(app.draw, True)

    def action_zoom(self, factor: float) -> None:
        """Zoom the shared x axis."""
        if chart := self._app.page.chart():
            self._app.desk.window.zoom(factor, chart.full)
            self._redraw()

    def action_pan(self, steps: int) -> None:
        """Move the window by a tenth of its width, or the crosshair by a cell."""
        if chart := self._app.page.chart():
            window = self._app.desk.window
            if window.cursor is not None:
                width = chart.drawn.width if chart.drawn else chart.size.width
                window.move_cursor(steps, width, chart.full)
            else:
                window.pan(steps / 10, chart.full)
            self._redraw()

    def action_fit(self) -> None:
        """Show everything."""
        self._app.desk.window.fit()
        self._redraw()

    def action_follow(self) -> None:
        """Jump to the newest step and stay with it."""
        window = self._app.desk.window
        window.follow = True
        if chart := self._app.page.chart():
            if window.low is not None and window.high is not None:
                window.pan(1e9, chart.full)
            window.follow = True
        self._redraw()

    def action_crosshair(self) -> None:
        """Crosshair on the newest point, or away with it."""
        window, chart = self._app.desk.window, self._app.page.chart()
        if window.cursor is not None or chart is None:
            window.cursor = None
        else:
            window.cursor = window.range(chart.full)[1]
        self._redraw()

    def action_log_y(self) -> None:
        """Logarithmic y axis of the focused chart."""
        self._toggle("log_y")

    def action_robust(self) -> None:
        """Leave outliers out of the y axis."""
        self._toggle("robust")

    def _toggle(self, name: str) -> None:
        if chart := self._app.page.chart():
            chart.toggle(name)

    def action_freeze_y(self) -> None:
        """Hold the y axis of the focused chart."""
        if chart := self._app.page.chart():
            chart.freeze()

    def action_log_x(self) -> None:
        """Logarithmic x axis for all charts."""
        window = self._app.desk.window
        window.log = not window.log
        window.fit()
        self._redraw()

    def action_axis(self) -> None:
        """Next meaning of x."""
        desk = self._app.desk
        desk.window.next_axis()
        if desk.window.axis == "flops" and not desk.view.steps.flops_per_token:
            desk.window.next_axis()
        self._redraw()

    def action_smooth(self, step: int) -> None:
        """More or less smoothing."""
        self._app.desk.smoother(step)
        self._redraw()

    def action_metric(self, step: int) -> None:
        """Next or previous statistic of the page."""
        self._on_page(lambda page: page.metric(step))

    def action_row(self, step: int) -> None:
        """Next or previous row."""
        self._on_page(lambda page: page.row(step))

    def action_turn(self, step: int) -> None:
        """Next or previous page of a list."""
        self._on_page(lambda page: page.turn(step))

    def action_open(self) -> None:
        """Open the current row."""
        self._on_page(lambda page: page.open())

    def action_alternate(self) -> None:
        """The other side of the page."""
        self._on_page(lambda page: page.alternate())

    def _on_page(self, call: Callable[[Any], None]) -> None:
        call(self._app.page)
        self._app.call_after_refresh(self._app.draw, True)

    async def action_filter(self) -> None:
        """Ask for a filter."""
        page = self._app.page

        def take(pattern: str | None) -> None:
            if pattern is not None:
                page.set_filter(pattern)
                self._redraw()

        hint = "text, glob* or /regex/; !not; several words must all match"
        await self._app.push_screen(Ask("filter", page.filter, hint), take)

    def action_color_map(self) -> None:
        """Next colour map."""
        desk, maps = self._app.desk, palette.COLOR_MAPS
        desk.color_map = maps[(maps.index(desk.color_map) + 1) % len(maps)]
        self._redraw()

    def action_normalise(self) -> None:
        """Each layer on its own scale, or all on one."""
        self._app.desk.normalise = not self._app.desk.normalise
        self._redraw()

    def action_hold(self) -> None:
        """Stop drawing, never reading."""
        app = self._app
        app.desk.held = not app.desk.held
        self._redraw()
        if not app.desk.held:
            app.look_now()

    def action_theme(self) -> None:
        """Next theme."""
        app = self._app
        known = [name for name in THEMES if name in app.available_themes]
        here = known.index(app.theme) if app.theme in known else -1
        app.theme = known[(here + 1) % len(known)]
        app.notify(app.theme, title="theme", timeout=2)
        app.call_after_refresh(app.draw, True)

    def action_export(self) -> None:
        """Save the focused pane."""
        app = self._app
        try:
            paths = export.export_pane(app, app.desk.session.folder.exports)
        except OSError as error:
            app.notify(str(error), title="not saved", severity="error")
            return
        app.notify("\n".join(str(path) for path in paths), title="saved")

    async def action_ask(self, name: str) -> None:
        """Ask the trainer for something, after asking the person."""
        app = self._app
        if name == "stop" and (app.desk.readonly or not app.desk.state().live):
            self.action_detach()
            return
        if app.desk.readonly:
            app.notify("read-only: nothing is sent to the trainer", severity="warning")
            return
        state = app.desk.state()
        if not state.live:
            app.notify(f"nobody would answer: the run is {state.word}", severity="warning")
            return
        await self._ask(name)

    async def _ask(self, name: str) -> None:
        app = self._app
        if name == "pause" and app.desk.view.paused:
            name = "resume"
        question, detail = _QUESTIONS[name]

        def confirmed(yes: bool | None) -> None:
            if yes:
                self._send(name, "")

        def typed(text: str | None) -> None:
            if text is None:
                return
            if name == "lr" and not _is_factor(text):
                app.notify(f"{text!r} is not a positive number", severity="error")
                return
            self._send(name, text)

        if name in ("sample", "lr"):
            value = "0.5" if name == "lr" else _last_prompt(app)
            await app.push_screen(Ask(question, value, detail), typed)
        else:
            await app.push_screen(Confirm(question, detail), confirmed)

    def _send(self, name: str, argument: str) -> None:
        from nanogpt_cli.tui.app import DashboardExit

        app = self._app
        try:
            app.desk.session.send(name, argument)
        except OSError as error:
            app.notify(str(error), title="not sent", severity="error")
            return
        if name == "stop":
            app.exit(DashboardExit(stop=True))
        else:
            app.notify("the trainer answers between two steps", title=f"{name} asked for")

    def action_detach(self) -> None:
        """Leave; training goes on."""
        from nanogpt_cli.tui.app import DashboardExit

        self._app.exit(DashboardExit())


_OURS = {key.action.partition("(")[0] for key in keys.KEYS} - {"command_palette", "app.focus_next"}
_QUESTIONS = {
    "pause": ("Pause training?", "It waits after the present step; P again resumes it."),
    "resume": ("Resume training?", ""),
    "checkpoint": ("Save a checkpoint now?", "Training goes on afterwards."),
    "eval": ("Evaluate now?", "One full pass over the validation split."),
    "sample": ("Write a sample from this prompt", "It appears under 4 Samples."),
    "lr": ("Multiply the learning rate by", "The whole remaining schedule is scaled."),
    "stop": ("Stop training?", "The trainer saves a checkpoint first; it can be resumed."),
}


def _is_factor(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


def _last_prompt(app: Any) -> str:
    samples = app.desk.view.samples
    return samples[-1].prompt if samples else ""
