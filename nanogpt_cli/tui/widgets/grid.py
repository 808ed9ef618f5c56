"""Pages of small charts, arranged to fill the space: of any metrics, or of what a page names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from textual.app import ComposeResult
from textual.containers import Grid

from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.drawing import heat, traces
from nanogpt_cli.tui.drawing.plot import Trace
from nanogpt_cli.tui.state import patterns
from nanogpt_cli.tui.state.history import METRICS
from nanogpt_cli.tui.state.view import RunView
from nanogpt_cli.tui.widgets.charts import LineChart
from nanogpt_cli.tui.widgets.panes import sample_axis
from nanogpt_cli.tui.widgets.rows import KeepsSize

MOST = 12
MIN_WIDTH, MIN_HEIGHT = 36, 7


def metric_names(view: RunView) -> list[str]:
    """Every series of a run by name: ``loss``, ``h.3.grad_norm``, …, in natural order."""
    names = [*METRICS, "val_loss"]
    names += [f"h.{k}.{n}" for k in range(view.layers.layers) for n in view.layers.names()]
    return patterns.select("", names)


def metric_trace(view: RunView, name: str, axis: str, level: int) -> list[Trace]:
    """The traces of one named series."""
    if name == "val_loss":
        return [Trace("val", traces.eval_axis(view, axis), view.evals["val_loss"], "val", "points")]
    if name in METRICS:
        return traces.metric_traces(view, name, axis, level)
    layer, _, stat = name.removeprefix("h.").partition(".")
    values = view.layers.values(stat)
    column = values[:, int(layer)] if int(layer) < values.shape[1] else np.full(len(values), np.nan)
    label = heat.statistic(stat).short or stat
    return [Trace(label, sample_axis(view, axis, stat), column, "train")]


def shape(count: int, width: int, height: int) -> tuple[int, int]:
    """Number of columns and rows of charts: as many as needed, if they fit into the cells."""
    most_columns = max(1, width // MIN_WIDTH)
    most_rows = max(1, height // MIN_HEIGHT)
    columns = 1
    while columns < most_columns and columns * min(most_rows, columns) < count:
        columns += 1
    return columns, min(most_rows, max(1, -(-count // columns)))


class ChartGrid(Grid, KeepsSize):
    """Up to ``MOST`` charts at once; ``turn`` shows the next ones."""

    DEFAULT_CSS = "ChartGrid { height: 1fr; grid-size: 3; }"

    def __init__(self, desk: Desk, id: str) -> None:
        super().__init__(id=id)
        self.desk = desk
        self.page_number = 0
        self.names: list[str] = []
        self.hidden = 0  # charts that another page has

    def compose(self) -> ComposeResult:
        """A pool of charts."""
        for index in range(MOST):
            yield LineChart("", id=f"{self.id}-{index}")

    def show_charts(self, names: list[str], draw_one: Callable[[LineChart, str], None]) -> None:
        """Show the charts of these names, as many as fit; each is drawn by ``draw_one``."""
        self.names = names
        self._made_for = self.size
        columns, rows = shape(len(names), self.size.width, self.size.height)
        room = min(MOST, columns * rows)
        self.page_number %= max(1, -(-len(names) // room))
        shown = names[self.page_number * room :][:room]
        self.hidden = len(names) - len(shown)
        self.styles.grid_size_columns = columns
        self.styles.grid_size_rows = max(1, -(-len(shown) // columns))
        for chart, name in zip(
            self.query(LineChart), [*shown, *[""] * (MOST - len(shown))], strict=True
        ):
            chart.display = bool(name)
            if name:
                chart.label = name
                draw_one(chart, name)

    def turn(self, step: int) -> None:
        """Next or previous page."""
        self.page_number += step


class MetricGrid(ChartGrid):
    """Charts of all metrics that match a filter."""

    def draw(self, pattern: str) -> None:
        """Show the metrics that match ``pattern``."""
        self.show_charts(patterns.select(pattern, metric_names(self.desk.view)), self._draw_one)
        if not self.names:
            first = next(iter(self.query(LineChart)))
            first.display = True
            first.empty = f"nothing matches {pattern!r}; esc shows all"
            first.label = "filter"
            first.show([], self.desk.window)

    def _draw_one(self, chart: LineChart, name: str) -> None:
        window = self.desk.window
        stat = name.split(".", 2)[-1]
        known = heat.STATISTICS.get(stat)
        chart.label = f"{name} ─ {known.label}" if known else traces.LABELS.get(name, name)
        chart.empty = "no sample yet"
        found = metric_trace(self.desk.view, name, window.axis, self.desk.smoothing)
        chart.show(found, window)
