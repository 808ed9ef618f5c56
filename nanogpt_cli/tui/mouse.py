"""The mouse: clicks, drags and the wheel do what keys do, where they point."""

from __future__ import annotations

import contextlib

from textual import events
from textual.errors import NoWidget
from textual.widget import Widget

from nanogpt_cli.tui import keys
from nanogpt_cli.tui.drawing.plot import Row
from nanogpt_cli.tui.run_actions import RunActions
from nanogpt_cli.tui.widgets.charts import LineChart
from nanogpt_cli.tui.widgets.panes import Pane

ZOOM = 1.25  # of one notch of the wheel


class MouseActions(RunActions):
    """What the mouse does on the pages; dialogs have their own ways."""

    def footer(self) -> Row:
        """The pages and keys in the bottom line; empty while a notice stands there."""
        raise NotImplementedError

    async def on_click(self, event: events.Click) -> None:
        """Choose a row, open it by a second click, or do what the bottom line names."""
        widget = self._under(event)
        if widget is not None and widget.id == "footer":
            column = event.screen_offset.x
            if key := keys.named_at(self.footer(), column, self.page.id or ""):
                await self.run_action(key.action)
            return
        away = _rows_away(widget, event)
        if away is None:
            return
        if event.chain == 1:
            self.action_row(away)
        elif event.chain == 2 and "open" in keys.actions_on(self.page.id or ""):
            self.action_open()  # what the first click has chosen, wherever it stands by now

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Put the crosshair where a chart is clicked."""
        self._point(event)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Move the crosshair along with a button that is held."""
        self._point(event)

    def _point(self, event: events.MouseEvent) -> None:
        if event.button == 1 and (found := self._on_chart(event)):
            _, self.desk.window.cursor = found
            self._redraw()

    def _under(self, event: events.MouseEvent) -> Widget | None:
        """The widget of a page that the mouse is on; none while a dialog is open."""
        if len(self.screen_stack) > 1:
            return None
        with contextlib.suppress(NoWidget):
            return self.get_widget_at(*event.screen_offset)[0]
        return None

    def _on_chart(self, event: events.MouseEvent) -> tuple[LineChart, float] | None:
        """The chart of the shared x axis that the mouse is on, and where on that axis."""
        chart = self._under(event)
        if not isinstance(chart, LineChart) or chart.window is not self.desk.window:
            return None
        offset = event.get_content_offset(chart)
        at = None if offset is None else chart.position(offset.x)
        return None if at is None else (chart, at)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Zoom in, or go a row up."""
        self._scroll(event, -1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Zoom out, or go a row down."""
        self._scroll(event, 1)

    def _scroll(self, event: events.MouseEvent, step: int) -> None:
        if found := self._on_chart(event):
            chart, at = found
            self.desk.window.zoom(ZOOM**-step, chart.full, at)
            self._redraw()
        elif _rows_away(self._under(event), event) is not None:
            self.action_row(step)


def _rows_away(widget: Widget | None, event: events.MouseEvent) -> int | None:
    """How far below the chosen row of a list the mouse is; ``None`` if it is on no list's row."""
    if not isinstance(widget, Pane) or widget.chosen is None:
        return None
    offset = event.get_content_offset(widget)
    if offset is None or not 0 < offset.y < widget.count:
        return None
    return offset.y - widget.chosen
