"""Heat maps of layers x time: their computation, free of side effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nanogpt_cli import units
from nanogpt_cli.tui.drawing import palette
from nanogpt_cli.tui.drawing.draw import Scale
from nanogpt_cli.tui.drawing.plot import Row, cell_of
from nanogpt_cli.tui.state.series import Floats, robust_range

Grid = NDArray[np.floating]
RAMP = " .:-=+*#%@"


@dataclass(frozen=True)
class Statistic:
    """Label, colours and healthy range of one per-layer statistic."""

    name: str
    label: str
    log: bool = False
    colors: str = ""  # its own colour map; empty for the chosen one
    low: float | None = None  # fixed ends of the colour scale
    high: float | None = None
    alarm_above: float | None = None
    alarm_below: float | None = None
    about: str = ""
    short: str = ""  # heading of a table column

    def extreme(self, rows: Grid, middle: float) -> Grid:
        """The value of each column (axis 0) that is farthest from normal; NaN only if all are.

        On a logarithmic scale that is the largest |log(value / middle)|, where ``middle`` is the
        statistic's median. Else it is the largest distance from the middle of the healthy range, or
        from the end of the range that has no limit.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.log:
                far = np.abs(np.log10(np.abs(rows) / middle))
            elif self.alarm_below is None:
                far = rows
            elif self.alarm_above is None:
                far = -rows
            else:
                far = np.abs(rows - (self.alarm_below + self.alarm_above) / 2)
        far = np.where(np.isnan(far), -np.inf, far)
        return np.asarray(np.take_along_axis(rows, far.argmax(0)[None], 0)[0])


STATISTICS = {
    item.name: item
    for item in (
        Statistic("resid_rms", "residual stream RMS", True, short="residual",
                  about="grows slowly with depth"),
        Statistic("resid_kurtosis", "residual stream kurtosis", True, short="kurtosis",
                  about="3 is normal; high if few channels are large"),
        Statistic("attn_rms", "attention output RMS", True, short="attention",
                  about="what attention adds to the stream"),
        Statistic("mlp_rms", "MLP output RMS", True, short="MLP",
                  about="what the MLP adds to the stream"),
        Statistic("preact_std", "MLP pre-activation std", True, short="pre-act",
                  about="far below 1 the MLP is nearly linear"),
        Statistic("grad_norm", "gradient norm", True, short="gradient",
                  about="similar for all layers is healthy"),
        Statistic("grad_rms", "gradient of the stream RMS", True, short="stream grad",
                  about="how much the loss depends on the stream"),
        Statistic("update_ratio", "log10 update : weight", colors="balance", low=-5, high=-1,
                  alarm_above=-1.5, alarm_below=-5, about="near -3 is healthy", short="upd:weight"),
        Statistic("weight_rms", "weight RMS", True, short="weight",
                  about="grows with training, held by weight decay"),
        Statistic("dead", "dead MLP units", low=0, high=1, alarm_above=0.5,
                  about="share near zero on every token", short="dead"),
        Statistic("attn_entropy", "attention entropy / ln t", low=0, high=1, alarm_below=0.1,
                  about="1 is uniform, 0 attends to one token", short="entropy"),
        Statistic("attn_entropy_min", "lowest head's entropy / ln t", low=0, high=1,
                  alarm_below=0.005, about="0: one head attends to one token", short="low head"),
        Statistic("attn_first", "attention on the first token", low=0, high=1,
                  about="near 1: heads rest on it", short="first token"),
        Statistic("attn_logit_max", "largest attention logit", True, alarm_above=50,
                  about="above 50 attention may collapse", short="max logit"),
        Statistic("attn_score_std", "attention score std", True, short="score std",
                  about="above 1.5 heads attend to few tokens"),
    )
}  # fmt: skip


def statistic(name: str) -> Statistic:
    """The description of a statistic; an unknown one is labelled with its name."""
    return STATISTICS.get(name) or Statistic(name, name.replace("_", " "))


def order(names: Sequence[str]) -> list[str]:
    """Known statistics in the order of the table above, others after them."""
    known = [name for name in STATISTICS if name in names]
    return known + sorted(set(names) - set(known), key=units.natural)


def flagged(stat: Statistic, value: float) -> bool:
    """Whether a value is outside its healthy range; False for NaN."""
    above = stat.alarm_above is not None and value > stat.alarm_above
    return above or (stat.alarm_below is not None and value < stat.alarm_below)


def buckets(
    stat: Statistic, steps: Floats, values: Grid, x: Scale, columns: int, middle: float
) -> tuple[Grid, NDArray[np.bool_]]:
    """(layers, columns): the extreme value in each time column, and where one was not finite.

    From the first sample on, a column without samples repeats the one before it.
    """
    borders = np.searchsorted(steps, x.edges(columns))
    borders[-1] = np.searchsorted(steps, x.high, side="right")
    starts, ends = borders[:-1], borders[1:]
    grid = np.full((values.shape[1], columns), np.nan)
    broken = np.zeros(grid.shape, bool)
    has = ends > starts
    if has.any():
        begin, end = int(starts[has][0]), int(ends[has][-1])
        part = values[begin:end]
        low = np.fmin.reduceat(part, starts[has] - begin, axis=0).T
        high = np.fmax.reduceat(part, starts[has] - begin, axis=0).T
        grid[:, has] = stat.extreme(np.stack([high, low]), middle)
        broken[:, has] = np.add.reduceat(~np.isfinite(part), starts[has] - begin, axis=0).T > 0
    source = np.where(has, np.arange(columns), -1)
    source = np.maximum.accumulate(source)
    known = source >= 0
    grid[:, known] = grid[:, source[known]]
    if not known.all() and starts[~known].max() > 0:  # there are samples left of the window
        grid[:, ~known] = values[starts[~known] - 1].T
    return grid, broken


def color_range(stat: Statistic, grid: Grid) -> tuple[float, float]:
    """The values at both ends of the colour scale: fixed, or the 2-98 % range of the values.

    ``color_bar`` shows whether values lie beyond.
    """
    robust = robust_range([grid[grid > 0] if stat.log else grid.reshape(-1)])
    low, high = robust or (0.0, 1.0)
    low, high = (
        stat.low if stat.low is not None else low,
        (stat.high if stat.high is not None else high),
    )
    if high - low < 1e-12 + 1e-6 * abs(low):
        low, high = (low * 0.9, high * 1.1) if low > 0 else (low - 0.5, high + 0.5)
    return float(low), float(high)


def levels(stat: Statistic, grid: Grid, ends: tuple[float, float], count: int) -> NDArray[np.int64]:
    """Colour numbers ``0 .. count - 1``; -1 where there is no value."""
    unit = Scale(*ends, stat.log and ends[0] > 0).unit(grid)
    unit = np.where(np.isneginf(unit), 0.0, unit)
    level = np.clip(np.nan_to_num(unit) * count, 0, count - 1).astype(np.int64)
    return np.where(np.isnan(unit), -1, level)


@dataclass(frozen=True)
class HeatMap:
    """Rows of text, the colour scale, and how many layers share a row.

    Attributes:
        rows: rows of text.
        ends: values at both ends of the colour scale.
        reach: smallest and largest value, which may lie beyond the ends.
        pooled: layers that share a colour.
    """

    rows: list[Row]
    ends: tuple[float, float]
    reach: tuple[float, float]
    pooled: int


def heat_map(
    stat: Statistic,
    steps: Floats,
    values: Grid,
    x_range: tuple[float, float],
    width: int,
    height: int,
    *,
    log_x: bool = False,
    colors: str = "cividis",
    ramp: bool = False,
    normalise: bool = False,
    cursor: float | None = None,
    selected: int | None = None,
) -> HeatMap:
    """Draw (samples, layers) ``values`` with one layer per row, or several if they do not fit.

    A row of several layers is labelled with all of them, and shows the one farthest from normal
    (``Statistic.extreme``). Without colours, ``ramp`` draws characters instead.
    """
    layers, height = values.shape[1], max(1, height)
    half = layers > height and not ramp
    step = 2 if half else 1
    pooled = max(1, -(-layers // (height * step)))  # layers per colour
    in_row = [range(i, min(i + pooled * step, layers)) for i in range(0, layers, pooled * step)]
    names = [layer_names(row[0], row[-1]) for row in in_row]
    left, right = max(map(len, names), default=0) + 2, 9
    inner = max(1, width - left - right)
    x = Scale(max(x_range[0], 1e-3) if log_x else x_range[0], x_range[1], log_x)
    middle = typical(values)
    grid, broken = buckets(stat, steps, values, x, inner, middle)
    shown = _own_scale(grid) if normalise else grid
    ends = color_range(stat, shown)
    finite = shown[np.isfinite(shown)]
    reach = (float(finite.min()), float(finite.max())) if len(finite) else ends
    last = values[-1].astype(float)
    if pooled > 1:
        groups = [slice(i, i + pooled) for i in range(0, layers, pooled)]
        shown = np.stack([stat.extreme(shown[g], 1.0 if normalise else middle) for g in groups])
        broken = np.stack([broken[group].any(0) for group in groups])
    column = None if cursor is None else cell_of(cursor, x, inner)
    level = levels(stat, shown, ends, len(RAMP) if ramp else palette.SHADES)
    scale = palette.shades(stat.colors or colors)
    thick = min(3, max(1, height // max(1, len(shown)))) if step == 1 else 1
    rows: list[Row] = []
    for index, (here, name) in enumerate(zip(in_row, names, strict=True)):
        pair = level[index * step : (index + 1) * step]
        bad = np.asarray(broken[index * step : (index + 1) * step].any(axis=0))
        row: Row = [(name.rjust(left - 1) + " ", "key" if selected in here else "axis")]
        row += _ramp_row(pair, bad, column) if ramp else _row(pair, bad, column, scale)
        group = last[here.start : here.stop]
        value = (
            float(stat.extreme(group[:, None], middle)[0]) if np.isfinite(group).all() else np.nan
        )
        mark = "!" if flagged(stat, value) or not np.isfinite(value) else " "
        row.append((f" {units.number(value):>6}{mark} ", "warning" if mark == "!" else "text"))
        rows.append(row)
        blank = [(" " * left, "axis"), *row[1:-1], (" " * right, "axis")]
        rows += [blank] * (thick - 1)
    return HeatMap(rows, ends, reach, pooled)


def typical(values: Grid) -> float:
    """The median of the sizes of all values that are neither zero nor broken; 1 without any."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    return float(np.median(sizes)) if len(sizes) else 1.0


def layer_names(first: int, last: int) -> str:
    """``h.3``, or ``h.0–3`` for a range."""
    return f"h.{first}" if first == last else f"h.{first}–{last}"


def _own_scale(grid: Grid) -> Grid:
    """Each layer divided by its own median, which shows changes instead of sizes."""
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = np.array(
            [np.median(r[np.isfinite(r)]) if np.isfinite(r).any() else 1 for r in grid]
        )
        return grid / np.where(middle == 0, 1, middle)[:, None]


def _row(
    pair: NDArray[np.int64], bad: NDArray[np.bool_], column: int | None, scale: tuple[str, ...]
) -> Row:
    """One line: a background colour, or two layers as half blocks."""
    top = pair[0]
    low = pair[1] if len(pair) > 1 else None
    code = top * 100 + (low if low is not None else 0)
    code = np.where(bad, 10_000, code)
    if column is not None:
        code = code.copy()
        code[column] += 100_000
    cuts = [0, *(np.flatnonzero(np.diff(code)) + 1).tolist(), len(code)]
    row: Row = []
    for a, b in pairwise(cuts):
        upper = scale[top[a]] if top[a] >= 0 else ""
        lower = upper if low is None else scale[low[a]] if low[a] >= 0 else ""
        text, key = _piece(b - a, upper, lower, bool(bad[a]), a == column)
        row.append((text, key))
    return row


def _piece(size: int, upper: str, lower: str, bad: bool, cursor: bool) -> tuple[str, str]:
    if bad:
        return "×" * size, "bold #ffffff on #b00020"
    if cursor:
        return "│" * size, f"{palette.ink_on(upper)} on {upper}" if upper else "cursor"
    if not upper and not lower:
        return " " * size, "plain"
    if upper == lower:
        return " " * size, f"on {upper}"
    if not lower:
        return "▀" * size, upper
    return "▀" * size, f"{upper} on {lower}" if upper else lower


def _ramp_row(pair: NDArray[np.int64], bad: NDArray[np.bool_], column: int | None) -> Row:
    chars = [RAMP[k] if k >= 0 else " " for k in pair[0].tolist()]
    text = "".join("x" if wrong else char for char, wrong in zip(chars, bad, strict=True))
    if column is not None:
        text = text[:column] + "|" + text[column + 1 :]
    return [(text, "text")]


def color_bar(picture: HeatMap, characters: bool) -> str:
    """The colour scale as text for a border: both ends, and the extremes if they lie beyond."""
    ramp = RAMP[1:] if characters else "░▒▓█"
    low, high = (units.number(end, 3) for end in picture.ends)
    least, most = (units.number(end, 3) for end in picture.reach)
    below = f"{least} < " if picture.reach[0] < picture.ends[0] and least != low else ""
    above = f" < {most}" if picture.reach[1] > picture.ends[1] and most != high else ""
    return f"{below}{low} {ramp} {high}{above}"
