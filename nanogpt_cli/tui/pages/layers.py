"""Page 2: every statistic of every layer, over time, by depth and as numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from textual.app import ComposeResult
from textual.widget import Widget

from nanogpt_cli import units
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.drawing import heat
from nanogpt_cli.tui.drawing.draw import sparkline
from nanogpt_cli.tui.drawing.plot import Row, Trace
from nanogpt_cli.tui.pages.overview import next_statistic
from nanogpt_cli.tui.pages.page import Across, Page
from nanogpt_cli.tui.state.history import numbers
from nanogpt_cli.tui.state.series import Floats
from nanogpt_cli.tui.state.window import Window
from nanogpt_cli.tui.widgets.charts import LineChart, bounds
from nanogpt_cli.tui.widgets.grid import MetricGrid
from nanogpt_cli.tui.widgets.histograms import HistogramPane
from nanogpt_cli.tui.widgets.panes import HeatPane, Pane, sample_axis

SPARK = 10
TOLERANCE = 0.1


class LayersPage(Page):
    """Heat map above, table and profile below; or charts of one layer or of filtered metrics."""

    def __init__(self, desk: Desk, id: str) -> None:
        super().__init__(desk, id)
        self.selected = 0

    def compose(self) -> ComposeResult:
        """Yield all panes; CSS classes select which are shown."""
        yield HeatPane(id="map")
        with Across(id="below"):
            yield LayerTable(id="table")
            yield ProfileChart("by depth", id="profile")
            yield HistogramPane(id="histogram")
        yield MetricGrid(self.desk, id="grid")

    def first_focus(self) -> Widget | None:
        """The heat map, or the grid's first chart."""
        return self.chart() if self.has_class("-grid") else self.query_one("#map")

    def update(self, slow: bool = True) -> None:
        """Draw everything once a second, which is enough for statistics."""
        if not slow:
            return
        names = self.desk.view.layers.names()
        if names and self.desk.statistic not in names:
            self.desk.statistic = heat.order(names)[0]
        self.selected = min(self.selected, max(0, self.desk.view.layers.layers - 1))
        if self.has_class("-grid"):
            self.query_one(MetricGrid).draw(self.filter)
            return
        self.query_one(HeatPane).draw(self.desk, selected=self.selected)
        self.query_one(LayerTable).draw(self.desk, self.selected)
        self.query_one(ProfileChart).draw(self.desk)
        self.query_one(HistogramPane).draw(self.desk, self.selected)

    def chart(self) -> LineChart | None:
        """The grid's chart, or the profile, through which keys move the heat map's window."""
        if self.has_class("-grid"):
            return super().chart()
        return self.query_one(ProfileChart)

    def metric(self, step: int) -> None:
        """Show the next statistic."""
        self.desk.statistic = next_statistic(self.desk.view.layers.names(), self.desk, step)

    def row(self, step: int) -> None:
        """Select the next layer, or show the next page of charts."""
        count = max(1, self.desk.view.layers.layers)
        if self.has_class("-grid"):
            self.query_one(MetricGrid).turn(step)
        else:
            self.selected = (self.selected + step) % count

    def turn(self, step: int) -> None:
        """Show the next page of charts."""
        if self.has_class("-grid"):
            self.query_one(MetricGrid).turn(step)

    def open(self) -> None:
        """Show the charts of the selected layer."""
        if not self.has_class("-grid") and self.desk.view.layers.layers:
            self.set_filter(f"h.{self.selected}.*")

    def alternate(self) -> None:
        """Switch between profile and histograms."""
        self.toggle_class("-other")

    def back(self) -> bool:
        """Return from the charts to the heat map."""
        was = self.has_class("-grid")
        self.set_filter("")
        return was

    def set_filter(self, pattern: str) -> None:
        """Show the metrics that match as charts; no pattern shows the map."""
        self.filter = pattern
        self.set_class(bool(pattern), "-grid")
        self.query_one(MetricGrid).page_number = 0
        target = self.first_focus()
        if target is not None:
            target.focus()


def at_cursor(desk: Desk, name: str) -> Floats:
    """A statistic of all layers at the crosshair, or the newest."""
    values = desk.view.layers.values(name)
    if not len(values):
        return np.empty(0)
    row = len(values) - 1
    if desk.window.cursor is not None:
        steps = sample_axis(desk.view, desk.window.axis, name)
        row = max(0, int(np.searchsorted(steps, desk.window.cursor, side="right")) - 1)
    return np.asarray(values[row])


class LayerTable(Pane):
    """One line per layer with the past and value of each statistic, marked if unhealthy."""

    def draw(self, desk: Desk, selected: int) -> None:
        """Draw as many statistics as fit, starting with the current one."""
        names = heat.order(desk.view.layers.names())
        if not names:
            self.empty("no layer statistics yet", "layers")
            return
        start = names.index(desk.statistic) if desk.statistic in names else 0
        size = 10 + SPARK
        count = max(1, min(len(names), (self.size.width - 7) // size))
        shown = (names[start:] + names[:start])[:count]
        head: Row = [("      ", "dim")]
        head += [
            (
                (heat.statistic(n).short or heat.statistic(n).label)[: size - 2].rjust(size - 2)
                + "  ",
                "dim",
            )
            for n in shown
        ]
        rows = [head]
        first = max(0, min(selected - (self.size.height - 2) // 2,
                           desk.view.layers.layers - self.size.height + 1))  # fmt: skip
        for layer in range(first, min(desk.view.layers.layers, first + self.size.height - 1)):
            rows.append(self._line(desk, layer, shown, layer == selected))
        self.set_rows(rows)
        where = "newest values" if desk.window.cursor is None else "values at the crosshair"
        odd = any("!" in text for row in rows[1:] for text, _ in row)
        where += " ─ ! outside the usual range" if odd else ""
        self.set_title(f"layers ─ past and {where}", "enter opens a layer")

    def _line(self, desk: Desk, layer: int, names: list[str], selected: bool) -> Row:
        row: Row = [(f" h.{layer}".ljust(6), "select" if selected else "text")]
        for name in names:
            stat, past = heat.statistic(name), desk.view.layers.values(name)
            past = past[:, layer] if layer < past.shape[1] else past[:, :0].reshape(-1)
            values = at_cursor(desk, name)
            value = float(values[layer]) if layer < len(values) else float("nan")
            odd = heat.flagged(stat, value) or value != value
            line = sparkline(past, SPARK, ascii_only=desk.ascii_only)
            row += [(line, "train"), (f"{units.number(value):>8}", "warning" if odd else "text"),
                    ("! " if odd else "  ", "warning")]  # fmt: skip
        return row


class ProfileChart(LineChart):
    """A statistic by depth: now, at the first sample, and as theory expects it at the start."""

    def __init__(self, title: str, *, id: str | None = None) -> None:
        super().__init__(title, id=id)
        self.depth = Window(axis="layer", axes=("layer",))
        self._of = ""

    def draw(self, desk: Desk) -> None:
        """Draw the profile at the crosshair."""
        stat = heat.statistic(desk.statistic)
        values, now = desk.view.layers.values(desk.statistic), at_cursor(desk, desk.statistic)
        x = np.arange(len(now), dtype=float)
        traces = theory_traces(desk.view.expected.get(desk.statistic, []))
        if len(now):
            traces.append(Trace("first", x, values[0], "dim", "dash"))
            traces.append(Trace("now", x, now, "train"))
        self.label, self.empty = f"{stat.label} by depth", "no sample yet"
        if self._of != stat.name:
            self._of = stat.name
            self.options = replace(self.options, log_y=stat.log, y_range=None)
        full = (0.0, max(1.0, len(now) - 1.0))
        self.show(traces, self.depth, full=full, note=stat.about)
        self.full = self._time_range(desk)

    def redraw(self) -> None:
        """Draw over all layers; ``full`` holds the time range for the keys and is kept."""
        kept = self.full
        layers = max((len(trace.x) for trace in self.traces if trace.name == "now"), default=0)
        self.full = (0.0, max(1.0, layers - 1.0))
        super().redraw()
        self.full = kept

    def _time_range(self, desk: Desk) -> tuple[float, float]:
        x = desk.view.steps[desk.window.axis]
        return bounds([Trace("", x, x, "")], desk.window.log)


def theory_traces(expected: object) -> list[Trace]:
    """The values that theory expects at initialisation, as a band of ±``TOLERANCE``."""
    middle = numbers(expected)
    if len(middle) < 2:
        return []
    fine = np.linspace(0, len(middle) - 1, 40 * len(middle))
    line = np.interp(fine, np.arange(len(middle)), middle)
    x = np.repeat(fine, 2)
    y = np.stack([line * (1 - TOLERANCE), line * (1 + TOLERANCE)], 1).reshape(-1)
    return [Trace("theory", x, y, "theory", "band")]
