"""A whole line chart as rows of styled text: axes, traces, marks, crosshair. No side effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nanogpt_cli import ticks
from nanogpt_cli.tui.drawing import draw
from nanogpt_cli.tui.drawing.draw import Envelope, Scale
from nanogpt_cli.tui.state.series import Extremes, Floats, robust_range

Row = list[tuple[str, str]]  # (text, colour key) pairs
_POINTS = {False: ord("●"), True: ord("o")}
_ASCII = {"line": ord("*"), "dash": ord("-"), "band": ord(":")}


@dataclass(frozen=True)
class Trace:
    """One series. ``kind``: "line", "dash", "band" (an envelope behind) or "points".

    The y axis fits the traces that are ``scaling``, if there is one, and cuts off the others.
    ``extremes`` are those of ``y``, if it is a column that has them: a long one is then drawn in
    much less time, and looks the same.
    """

    name: str
    x: Floats
    y: Floats
    color: str
    kind: str = "line"
    scaling: bool = True
    extremes: Extremes | None = None


@dataclass(frozen=True)
class PlotOptions:
    """Options of a chart, apart from its traces."""

    log_x: bool = False
    log_y: bool = False
    robust: bool = False  # y axis over the 2-98 % range; values beyond are drawn at the border
    y_range: tuple[float, float] | None = None
    cursor: float | None = None
    ascii_only: bool = False
    x_axis: str = "step"
    axes: bool = True
    marks: Sequence[tuple[float, str, str]] = field(default=())  # x, character, colour key


@dataclass(frozen=True)
class Plot:
    """Rows of text, and the position and scales of the plot area in them."""

    rows: list[Row]
    left: int
    width: int
    height: int
    x: Scale
    y: Scale


def plot(
    traces: Sequence[Trace],
    x_range: tuple[float, float],
    width: int,
    height: int,
    options: PlotOptions | None = None,
) -> Plot:
    """Draw ``traces`` into ``width`` x ``height`` cells, the later ones over the earlier.

    A width below one cell, on a console of a column or two, counts as one.
    """
    options, width = options or PlotOptions(), max(1, width)
    show_x, show_y = options.axes and height >= 4, options.axes and width >= 20
    plot_height = max(1, height - show_x)
    x_scale = _x_scale(x_range, options.log_x)
    dots = 1 if options.ascii_only else 2
    y_scale = _y_scale(traces, x_scale, width * dots, options)
    y_ticks = ticks.values(y_scale.low, y_scale.high, max(2, plot_height // 2), y_scale.log)
    labels = ticks.labels(y_ticks)
    left = max((len(label) for label in labels), default=0) + 1 if show_y else 0
    inner = max(1, width - left)
    bands = [draw.envelope(t.x, t.y, x_scale, inner * dots, t.extremes) for t in traces]
    chars, colors, keys = _cells(traces, bands, y_scale, inner, plot_height, options)
    _mark(chars, colors, keys, bands, x_scale, options)
    rows = _rows(chars, colors, keys)
    if left:
        rows = _with_y_axis(rows, y_ticks, labels, y_scale, left, options.ascii_only)
    if show_x:
        rows.append(_x_axis(x_scale, inner, left, options))
    return Plot(rows, left, inner, plot_height, x_scale, y_scale)


def _x_scale(x_range: tuple[float, float], log: bool) -> Scale:
    low, high = x_range
    if log:
        low, high = max(low, 1.0 if high > 1 else 1e-3), max(high, 1e-3)
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        low, high = (low, low + 1) if math.isfinite(low) else (0.0, 1.0)
    return Scale(low, high, log)


def _y_scale(traces: Sequence[Trace], x: Scale, buckets: int, options: PlotOptions) -> Scale:
    """The y axis over the traces that are scaling, or over all if those are empty."""
    if options.y_range is not None:
        low, high = options.y_range
        if not options.log_y or low > 0:
            return Scale(low, high, options.log_y)
    spans = _spans([trace for trace in traces if trace.scaling], x, buckets, options)
    spans = spans or _spans(traces, x, buckets, options)
    low, high = ticks.padded_bounds(spans, options.log_y)
    return Scale(low, high, options.log_y)


def _spans(
    traces: Sequence[Trace], x: Scale, buckets: int, options: PlotOptions
) -> list[tuple[float, float]]:
    """The range of each trace; one of all with ``robust``, which counts columns and not points."""
    if not (options.log_y or options.robust):
        found = (draw.reach(t.x, t.y, x, t.extremes) for t in traces)
        return [span for span in found if span is not None]
    bands = [draw.envelope(t.x, t.y, x, buckets, t.extremes) for t in traces]
    lows = [band.low[band.filled] for band in bands]
    highs = [band.high[band.filled] for band in bands]
    if options.log_y:
        lows = [low[low > 0] for low in lows]
        highs = [high[high > 0] for high in highs]
    spans = [
        (float(low.min()), float(high.max()))
        for low, high in zip(lows, highs, strict=True)
        if len(low) and len(high)
    ]
    robust = robust_range([*lows, *highs]) if options.robust and spans else None
    return [robust] if robust else spans


def _cells(
    traces: Sequence[Trace],
    bands: list[Envelope],
    y_scale: Scale,
    width: int,
    height: int,
    options: PlotOptions,
) -> tuple[NDArray[np.uint32], NDArray[np.int16], list[str]]:
    """Code points and colour numbers of every cell; a cell shows the last trace in it."""
    chars = np.full((height, width), ord(" "), np.uint32)
    colors = np.zeros((height, width), np.int16)
    keys = ["plain"]
    for trace, band in zip(traces, bands, strict=True):
        codes = _codes(trace, band, y_scale, width, height, options)
        there = codes > 0
        chars[there] = codes[there]
        colors[there] = len(keys)
        keys.append(trace.color)
    return chars, colors, keys


def _codes(
    trace: Trace, band: Envelope, y: Scale, width: int, height: int, options: PlotOptions
) -> NDArray[np.uint32]:
    """One trace as code points; 0 where it does not touch a cell."""
    if options.ascii_only:
        cells = draw.raster(band, y, height, joined=trace.kind != "points")
        sign = _ASCII.get(trace.kind, _POINTS[True])
        return np.where(cells, sign, 0).astype(np.uint32)
    cells = draw.raster(band, y, height * 4, joined=True)
    if trace.kind == "dash":
        cells &= np.arange(width * 2) % 6 < 3
    codes = draw.braille(cells)
    if trace.kind == "points":
        single = draw.raster(band, y, height * 4, joined=False)
        at = single.reshape(height, 4, width, 2).any((1, 3))
        if at.sum() * 3 <= width:  # close points would hide the line between them
            codes[at] = _POINTS[False]
    return codes


def _mark(
    chars: NDArray[np.uint32],
    colors: NDArray[np.int16],
    keys: list[str],
    bands: list[Envelope],
    x: Scale,
    options: PlotOptions,
) -> None:
    """Add the crosshair, event marks, and a cross in the top row where a value was not finite."""
    width = chars.shape[1]

    def put(columns: NDArray[np.intp], char: str, key: str, rows: slice) -> None:
        if key not in keys:
            keys.append(key)
        chars[rows, columns] = ord(char)
        colors[rows, columns] = keys.index(key)

    if options.cursor is not None:
        column = cell_of(options.cursor, x, width)
        if column is not None:
            empty = chars[:, column] == ord(" ")
            chars[empty, column] = ord("|" if options.ascii_only else "│")
            keys.append("cursor")
            colors[empty, column] = len(keys) - 1
    for where, char, key in options.marks:
        column = cell_of(where, x, width)
        if column is not None:
            put(np.array([column]), char, key, slice(0, 1))
    for band in bands:
        broken = np.flatnonzero(band.broken.reshape(width, -1).any(1))
        if len(broken):
            put(broken, "x" if options.ascii_only else "×", "error", slice(0, 1))


def cell_of(value: float, x: Scale, width: int) -> int | None:
    """The cell column of an x value; ``None`` outside the plot."""
    unit = float(x.unit(np.array([value]))[0])
    return min(width - 1, int(unit * width)) if 0 <= unit <= 1 else None


def _rows(chars: NDArray[np.uint32], colors: NDArray[np.int16], keys: list[str]) -> list[Row]:
    """Group cells into runs of one colour; blanks join the run before them."""
    height, width = chars.shape
    source = np.maximum.accumulate(np.where(chars == ord(" "), 0, np.arange(width)), axis=1)
    shown = np.take_along_axis(colors, source, axis=1)
    begins = np.ones((height, width), bool)  # a run begins with each row, and with each colour
    np.not_equal(shown[:, 1:], shown[:, :-1], out=begins[:, 1:])
    at = np.flatnonzero(begins)
    text = chars.tobytes().decode("utf-32-le")
    names = [keys[number] for number in shown.reshape(-1)[at].tolist()]
    cuts = [*at.tolist(), height * width]
    runs = [(text[a:b], name) for (a, b), name in zip(pairwise(cuts), names, strict=True)]
    ends = np.cumsum(begins.sum(1)).tolist()
    return [runs[a:b] for a, b in pairwise([0, *ends])]


def _with_y_axis(
    rows: list[Row], at: list[float], labels: list[str], y: Scale, left: int, ascii_only: bool
) -> list[Row]:
    """Put labels and an axis line before each row."""
    tick, line = ("+", "|") if ascii_only else ("┤", "│")
    height = len(rows)
    placed: dict[int, str] = {}
    if at:
        dots = draw.dots_of(np.array(at), y, height * 4)
        placed = {int(dot) // 4: text for dot, text in zip(dots, labels, strict=True)}
    return [
        [(placed.get(i, "").rjust(left - 1) + (tick if i in placed else line), "axis"), *row]
        for i, row in enumerate(rows)
    ]


def _x_axis(x: Scale, width: int, left: int, options: PlotOptions) -> Row:
    """Labels centred under their positions, without those that would touch."""
    at = ticks.values(x.low, x.high, max(2, width // 9), x.log, options.x_axis)
    line = [" "] * (left + width)
    free = 0
    for value, label in zip(at, ticks.labels(at, options.x_axis), strict=True):
        column = cell_of(value, x, width)
        if column is None:
            continue
        start = max(0, min(left + column - len(label) // 2, left + width - len(label)))
        if start >= free:
            line[start : start + len(label)] = label
            free = start + len(label) + 1
    return [("".join(line), "axis")]
