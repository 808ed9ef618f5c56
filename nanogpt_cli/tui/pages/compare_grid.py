"""The charts of page Compare: a metric each, of several runs, over one x axis."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from textual.app import ComposeResult
from textual.containers import Grid

from nanogpt_cli.errors import UserError
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.drawing import curves, heat, palette, traces
from nanogpt_cli.tui.drawing.plot import Trace
from nanogpt_cli.tui.state import patterns, scalars
from nanogpt_cli.tui.state.history import METRICS, SMOOTHING
from nanogpt_cli.tui.state.view import RunView
from nanogpt_cli.tui.widgets import grid
from nanogpt_cli.tui.widgets.charts import LineChart, bounds
from nanogpt_cli.tui.widgets.rows import KeepsSize

MOST = 12  # charts at once


@dataclass(frozen=True)
class Shown:
    """A run in the charts, and its colour key."""

    view: RunView
    color: str


def known(views: Sequence[RunView]) -> list[str]:
    """Metrics over time that a run holds: ``loss``, ``resid_rms/3``, tags of other programs, …"""
    found: list[str] = []
    tags = _tags(views)
    for name in curves.known_metrics(views):
        stat = name.removeprefix(curves.LAYERS)
        if name in curves.OURS or scalars.tag_of(name, tags, curves.OURS):
            found.append(name)
            continue
        layers = max(view.layers.values(stat).shape[1] for view in views)
        found += [f"{name}/{layer}" for layer in range(layers)]
    return found


def _tags(views: Sequence[RunView]) -> set[str]:
    """What other programs have logged besides our own metrics."""
    return {tag for view in views for tag in view.scalars.tags()}


def selected(text: str, names: Sequence[str]) -> list[str]:
    """The metrics that any word of a text means: by its name, else as a pattern.

    Raises:
        UserError: a word means none of them.
    """
    found: list[str] = []
    for word in text.split():
        exact = [word] if word in names else [n for n in names if patterns.matches(word, n)]
        if not exact:
            raise UserError(f"no run holds a metric like {word!r:.40}",
                            f"there are {', '.join(names[:4])}, …")  # fmt: skip
        found += exact
    return list(dict.fromkeys(found))


def groups(shown: Sequence[Shown]) -> list[list[Shown]]:
    """The runs in groups that differ in the seed alone; most groups are single runs."""
    parts = curves.groups([run.view for run in shown])
    return [[shown[index] for index in part] for part in parts]


def metric_traces(
    parts: Sequence[Sequence[Shown]], name: str, axis: str, level: int
) -> list[Trace]:
    """The traces of a metric: a line for each run, or a mean and its band for several seeds."""
    lines: list[Trace] = []
    bands: list[Trace] = []
    for part in parts:
        kind = "line" if len(lines) % 2 == 0 else "dash"
        single = len(part) == 1 and (name in METRICS or name == "val_loss")
        if single:
            lines.append(_single(part[0], name, axis, level, kind))
        elif (curve := _joined(part, name, axis, level)) is not None:
            color, sound = part[0].color, not curve.diverged
            if len(part) > 1:
                x, edges = np.repeat(curve.x, 2), np.stack([curve.low, curve.high], 1)
                shade = palette.band_color(color)
                bands.append(Trace("range", x, edges.reshape(-1), shade, "band", sound))
            lines.append(Trace(curve.label, curve.x, curve.y, color, kind, sound))
    return [*bands, *lines]


def _single(run: Shown, name: str, axis: str, level: int, kind: str) -> Trace:
    """One run's metric, with its gaps where it was not finite."""
    view, sound = run.view, not run.view.diverged
    if name == "val_loss":
        x = traces.eval_axis(view, axis)
        return Trace(view.name, x, view.evals["val_loss"], run.color, "points", sound)
    found = traces.trace(view, name, axis, SMOOTHING[level], view.name, run.color, kind)
    return replace(found, scaling=sound)


def _joined(part: Sequence[Shown], name: str, axis: str, level: int) -> curves.Curve | None:
    smooth = SMOOTHING[level] if name in traces.SMOOTHED else 0.0
    views = [run.view for run in part]
    wanted = curves.Wanted(name, axis, smooth if name in METRICS else None)
    try:
        return curves.curves(views, curves.resolved(views, wanted))[0]
    except UserError:  # none of them holds it
        return None


class CompareGrid(Grid, KeepsSize):
    """Up to ``MOST`` charts of one x axis; ``turn`` shows the next ones."""

    DEFAULT_CSS = "CompareGrid { height: 3fr; grid-size: 1; }"

    def __init__(self, desk: Desk, id: str) -> None:
        super().__init__(id=id)
        self.desk = desk
        self.page_number = 0

    def compose(self) -> ComposeResult:
        """A pool of charts."""
        yield LineChart("compare", id="overlay")
        for index in range(1, MOST):
            yield LineChart("", id=f"overlay-{index}")

    def draw(self, shown: Sequence[Shown], names: Sequence[str], note: str) -> None:
        """Show some metrics of some runs."""
        self._made_for = self.size
        columns, rows = grid.shape(len(names), self.size.width, self.size.height)
        room = max(1, min(MOST, columns * rows))
        pages = max(1, -(-len(names) // room))
        self.page_number %= pages
        here = names[self.page_number * room :][:room]
        charts = list(self.query(LineChart))
        self.styles.grid_size_columns = columns
        self.styles.grid_size_rows = max(1, -(-len(here) // columns))
        parts, window = groups(shown), self.desk.window
        tags = _tags([run.view for run in shown])
        found = [metric_traces(parts, n, window.axis, self.desk.smoothing) for n in here]
        every = [trace for lines in found for trace in lines]
        full = bounds(every, window.log) if len(here) > 1 else None
        if len({trace.scaling for trace in every}) > 1:
            note += " ─ y axis without diverged runs"
        if pages > 1:
            turn = f"{self.page_number + 1}/{pages}, n p"
            note = f"{turn} ─ {note}" if self.size.width // columns > 100 else turn
        for number, chart in enumerate(charts):
            chart.display = number < len(here)
            if chart.display:
                chart.label, chart.empty = _label(here[number], tags), "nothing to compare yet"
                chart.show(found[number], window, full=full, note="" if number else note)

    def turn(self, step: int) -> None:
        """Next or previous page."""
        self.page_number += step


def _label(name: str, tags: Collection[str]) -> str:
    if tag := scalars.tag_of(name, tags, curves.OURS):
        return tag  # a slash in it begins no layer
    stat, _, layer = name.removeprefix(curves.LAYERS).partition("/")
    return (
        f"layer {layer}: {heat.statistic(stat).label}" if layer else traces.LABELS.get(name, name)
    )
