"""Page 6: where the time goes, and what CPU, memory, disk and GPUs do meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from textual.app import ComposeResult
from textual.widget import Widget

from nanogpt_cli import units
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.drawing import palette
from nanogpt_cli.tui.drawing.plot import Trace
from nanogpt_cli.tui.pages.page import Across, Page
from nanogpt_cli.tui.pages.system_panes import NowPane, TimesPane
from nanogpt_cli.tui.state.machine import positions
from nanogpt_cli.tui.state.series import Columns, Floats
from nanogpt_cli.tui.state.view import RunView
from nanogpt_cli.tui.widgets.grid import ChartGrid

GIB = 2.0**30


@dataclass(frozen=True)
class Chart:
    """A chart of the page: its title, and its lines (name, values of a sample, colour)."""

    title: str
    lines: tuple[tuple[str, Callable[[Columns], Floats], str], ...]
    of_gpus: bool = False


def _scaled(name: str, unit: float) -> Callable[[Columns], Floats]:
    return lambda columns: columns[name] / unit


def _of_children(columns: Columns) -> Floats:
    """Nothing where there never were any."""
    values = columns["children_rss"] / GIB
    return values if np.nansum(values) > 0 else np.full(len(values), np.nan)


def _own_share(columns: Columns) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(100 * columns["process_cpu"] / columns["cores"])


CHARTS = (
    Chart("CPU %", (("machine", _scaled("cpu", 0.01), "raw"), ("this run", _own_share, "train"))),
    Chart("memory in use, GiB", (("machine", _scaled("memory_used", GIB), "train"),
                                 ("control group", _scaled("group_used", GIB), "val"))),
    Chart("memory of this run, GiB", (("trainer", _scaled("rss", GIB), "train"),
                                      ("its children", _of_children, "lr"))),
    Chart("disk free, GiB", (("", _scaled("disk_free", GIB), "speed"),)),
    Chart("GPU busy %", (("", _scaled("utilization", 0.01), ""),), True),
    Chart("GPU memory, GiB", (("", _scaled("memory_used", GIB), ""),), True),
    Chart("GPU memory of tensors, GiB", (("reserved", _scaled("torch_reserved", GIB), ""),
                                         ("allocated", _scaled("torch_allocated", GIB), "")),
          True),
    Chart("GPU power, W", (("", _scaled("power_w", 1), ""),), True),
    Chart("GPU temperature, C", (("", _scaled("temperature_c", 1), ""),), True),
    Chart("GPU clock, MHz", (("", _scaled("sm_mhz", 1), ""),), True),
)  # fmt: skip


def traces(view: RunView, chart: Chart, axis: str) -> list[Trace]:
    """The lines of a chart that have values."""
    found = []
    if chart.of_gpus:
        for number, gpu in enumerate(view.machine.gpus.values()):
            x = positions(gpu, view.steps, axis)
            for place, (name, values, _) in enumerate(chart.lines):
                label = f"GPU {number} {name}".strip()
                kind = "line" if place == 0 else "dash"
                found.append(_known(label, x, values(gpu), palette.run_color(number), kind))
    else:
        x = positions(view.machine.columns, view.steps, axis)
        for name, values, color in chart.lines:
            found.append(_known(name or "free", x, values(view.machine.columns), color))
    return [trace for trace in found if len(trace.y)]


def _known(name: str, x: Floats, y: Floats, color: str, kind: str = "line") -> Trace:
    """A line through the samples that have a value."""
    known = np.isfinite(y)
    return Trace(name, x[known], y[known], color, kind)


class SystemGrid(ChartGrid):
    """Charts of what was sampled, over the shared x axis."""

    def draw(self) -> None:
        """Show as many charts as fit; ``turn`` shows the next ones."""
        desk = self.desk
        shown = {chart.title: traces(desk.view, chart, desk.window.axis) for chart in CHARTS}
        self.show_charts([title for title in shown if shown[title]], lambda c, t: c.show(
            shown[t], desk.window))  # fmt: skip


class SystemPage(Page):
    """Where the time goes and the newest sample above, charts below."""

    def compose(self) -> ComposeResult:
        """Yield both panes and the charts."""
        with Across(id="machine"):
            yield TimesPane(id="times")
            yield NowPane(id="now")
        yield SystemGrid(self.desk, id="system-grid")

    def first_focus(self) -> Widget | None:
        """The first chart, or the pane that is shown."""
        other = self.has_class("-other") or self.has_class("-alone")
        return self.chart() or self.query_one("#now" if other else "#times")

    def update(self, slow: bool = True) -> None:
        """Draw everything once a second, which is enough for samples every few seconds."""
        if not slow:
            return
        self.set_class(not len(self.desk.view.machine), "-empty")
        self.set_class(len(self.desk.pages) == 1, "-alone")  # no run whose time could be told
        grid = self.query_one(SystemGrid)
        grid.draw()
        shown = grid.hidden and grid.size.height
        more = f"n {units.counted(grid.hidden, 'more chart')}" if shown else ""
        times = self.query_one(TimesPane)
        times.draw(self.desk, why_empty(self.desk), more)
        self.query_one(NowPane).draw(self.desk, "" if times.size.height else more)

    def turn(self, step: int) -> None:
        """Show the next charts."""
        self.query_one(SystemGrid).turn(step)

    def alternate(self) -> None:
        """On a narrow screen the newest sample in place of the times; on a wide one only charts."""
        self.toggle_class("-other")


def why_empty(desk: Desk) -> str:
    """Why a run has no samples, in a sentence."""
    view = desk.view
    log = view.started.recipe.get("log") if view.started else None
    if not isinstance(log, dict) or "system_every" not in log:
        return (
            "this log holds no samples of the machine: its trainer was another program, or an "
            "earlier version"
            if view.started or view.imported
            else "waiting for the trainer"
        )
    if log["system_every"] == 0:
        return "the machine was not sampled: log.system_every = 0"
    if desk.state().live:
        return "the first sample comes after a second of training"
    return "the run ended before the first sample, which comes after a second"
