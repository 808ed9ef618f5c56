"""Page: the interface of the dashboard's pages to the keys."""

from __future__ import annotations

from textual.containers import Horizontal, Vertical
from textual.widget import Widget

from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.widgets.charts import LineChart


class Across(Horizontal):
    """Panes side by side, which fill it: nothing of its own is ever seen."""

    BLANK = True  # so that Textual does not look up the style of each of its lines


class Down(Vertical):
    """Panes one below the other, which fill it."""

    BLANK = True


class Page(Down):
    """A page draws from the desk in ``update``; keys that it does not override do nothing."""

    title = ""

    def __init__(self, desk: Desk, id: str) -> None:
        super().__init__(id=id)
        self.desk = desk

    def update(self, slow: bool = True) -> None:
        """Draw what is new; ``slow`` is True once a second."""

    def first_focus(self) -> Widget | None:
        """The widget that gets the focus when the page is opened."""
        return next(iter(self.query(LineChart)), None)

    def chart(self) -> LineChart | None:
        """The chart that keys act on: the focused one, or else the page's first."""
        focused = self.app.focused
        if isinstance(focused, LineChart) and focused in self.query(LineChart):
            return focused
        shown = [c for c in self.query(LineChart) if c.region.width > 0]
        return shown[0] if shown else None

    def metric(self, step: int) -> None:
        """Show the next or previous statistic."""

    def row(self, step: int) -> None:
        """Select the next or previous row."""

    def turn(self, step: int) -> None:
        """Show the next or previous page of a list."""

    def open(self) -> None:
        """Open the current row."""

    def alternate(self) -> None:
        """Show the other view of the page."""

    def step_in_question(self) -> int | None:
        """The step that the user may want explained: by default that under the crosshair."""
        cursor, steps = self.desk.window.cursor, self.desk.view.steps
        return None if cursor is None else steps.nearest(self.desk.window.axis, cursor)

    def back(self) -> bool:
        """Close what was opened last; returns whether there was anything to close."""
        return False

    def set_filter(self, pattern: str) -> None:
        """Show only what matches."""

    filter = ""
