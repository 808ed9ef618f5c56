"""LineChart: a pane with a line chart, and the switches of its y axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.cells import cell_len

from nanogpt_cli import units
from nanogpt_cli.tui.drawing.plot import Plot, PlotOptions, Row, Trace, plot
from nanogpt_cli.tui.state.window import Window
from nanogpt_cli.tui.widgets.rows import RowsWidget


def bounds(traces: Sequence[Trace], log: bool = False) -> tuple[float, float]:
    """The x range that contains all of ``traces``."""
    filled = [trace.x for trace in traces if len(trace.x)]
    if not filled:
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = min(float(x[0]) for x in filled), max(float(x[-1]) for x in filled)
    if not log and low <= high * 0.02:
        low = 0.0
    return (low, high) if high > low else (low, low + 1)


def value_at(trace: Trace, x: float) -> float | None:
    """The latest value of ``trace`` at or before ``x``; ``None`` before its first."""
    index = int(np.searchsorted(trace.x, x, side="right")) - 1
    return float(trace.y[index]) if index >= 0 else None


class LineChart(RowsWidget, can_focus=True):
    """Shows traces over the shared window. Its y axis can be logarithmic, robust or held."""

    DEFAULT_CSS = """
    LineChart { border: round $foreground 25%; border-title-color: $text;
                border-subtitle-color: $text-muted; padding: 0; }
    LineChart:focus { border: round $accent; }
    """

    def __init__(self, title: str, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.label = title
        self.traces: Sequence[Trace] = ()
        self.window = Window()
        self.options = PlotOptions()
        self.empty = "waiting for data"
        self.note = ""
        self.full: tuple[float, float] = (0.0, 1.0)
        self.drawn: Plot | None = None

    def show(
        self,
        traces: Sequence[Trace],
        window: Window,
        *,
        full: tuple[float, float] | None = None,
        note: str = "",
        marks: Sequence[tuple[float, str, str]] = (),
    ) -> None:
        """Draw ``traces``; ``full`` is the x range of all data, ``note`` goes into the title."""
        self.traces, self.window, self.note = traces, window, note
        self.full = full or bounds(traces, window.log)
        self.options = replace(self.options, marks=tuple(marks))
        self.redraw()

    def redraw(self) -> None:
        """Draw again with the current options."""
        width, height = self.size.width, self.size.height
        if width < 1 or height < 1:
            return
        if not any(len(trace.x) for trace in self.traces):
            self.set_title(self.label)
            middle: list[Row] = [[] for _ in range(height // 2)]
            self.set_rows([*middle, [(self.empty.center(width), "dim")]])
            self.drawn = None
            return
        self.options = replace(
            self.options, log_x=self.window.log, x_axis=self.window.axis,
            cursor=self.window.cursor, ascii_only=getattr(self.app, "ascii_only", False),
            axes=height >= 4,
        )  # fmt: skip
        self.drawn = plot(self.traces, self.window.range(self.full), width, height, self.options)
        self.set_rows(self.drawn.rows)
        self.set_title(self._title(), self._legend())

    def position(self, column: int) -> float | None:
        """The x value in the middle of a column of the pane; ``None`` beside the plot."""
        plot = self.drawn
        if plot is None or not 0 <= column - plot.left < plot.width:
            return None
        left, right = plot.x.edges(plot.width)[column - plot.left :][:2]
        return float(left * right) ** 0.5 if plot.x.log else float(left + right) / 2

    def _title(self) -> str:
        said = [self.label, *([self.note] if self.note else [])]
        switches = [
            name
            for name, on in (
                ("log y", self.options.log_y),
                ("2–98 %", self.options.robust),
                ("y held", self.options.y_range is not None),
            )
            if on
        ]
        for parts in (said + switches, said, [self.label]):
            if cell_len(title := " ─ ".join(parts)) <= self.size.width - 4:
                return title
        return self.label

    def _legend(self) -> str:
        """Names of the traces with their newest values, or those under the crosshair."""
        cursor = self.window.cursor
        signs = {"band": "╌", "line": "━", "points": "●", "dash": "┅"}
        if self.options.ascii_only:
            signs = {"band": ":", "line": "*", "points": "o", "dash": "-"}
        parts = []
        for trace in self.traces:
            if not len(trace.y):
                continue
            value = float(trace.y[-1]) if cursor is None else value_at(trace, cursor)
            bare = trace.color == "theory" or trace.color.startswith("band")
            shown = "" if bare else f" {units.number(value)}"
            part = f"{signs[trace.kind]} {trace.name}{shown}"
            parts += [part] if part not in parts else []  # bands of several lines mean the same
        if cursor is not None:
            at = units.duration(cursor) if self.window.axis == "time" else f"{cursor:,.0f}"
            parts.insert(0, f"{self.window.axis} {at}")
        room = self.size.width - 4
        while parts and cell_len("  ".join(parts)) > room:
            parts.pop(0 if cursor is None else -1)
        return "  ".join(parts)

    def toggle(self, name: str) -> None:
        """Flip ``log_y`` or ``robust``."""
        changed = {"log_y": self.options.log_y, "robust": self.options.robust}
        changed[name] = not changed[name]
        self.options = replace(self.options, log_y=changed["log_y"], robust=changed["robust"])
        self.redraw()

    def freeze(self) -> None:
        """Hold the y axis at its current range, or release it."""
        held = self.options.y_range is not None
        span = (self.drawn.y.low, self.drawn.y.high) if self.drawn and not held else None
        self.options = replace(self.options, y_range=span)
        self.redraw()

    def csv(self) -> str:
        """The shown traces as long-format CSV, with every point exactly."""
        lines = [f"series,{self.window.axis},value"]
        for trace in self.traces:
            lines += [
                f"{trace.name},{x:g},{y!r}"
                if x == int(x) and x < 1e6
                else f"{trace.name},{x!r},{y!r}"
                for x, y in zip(trace.x.tolist(), trace.y.tolist(), strict=True)
            ]
        return "\n".join(lines) + "\n"
