"""From points to braille: the drawing behind every line chart, free of side effects.

A chart of W x H cells has 2W x 4H dots. All points in one dot column are drawn as the span from
their smallest to their largest value, so a one-step spike among a million points is always visible.
Apart from one pass over the visible points, the work grows with the number of dots only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanogpt_cli.tui.state.series import Extremes, Floats

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
_MANY = 16  # blocks in a bucket from which reading their extremes saves time
# Bit of each dot of a braille cell, rows from the top (Unicode chapter 21.1).
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], np.uint8)


@dataclass(frozen=True)
class Scale:
    """Maps ``[low, high]`` onto ``[0, 1]``, linearly or by logarithm."""

    low: float
    high: float
    log: bool = False

    def unit(self, values: Floats) -> Floats:
        """Position of values between low (0) and high (1), not clamped; logs may be NaN or -inf."""
        if not self.log:
            with np.errstate(over="ignore", invalid="ignore"):
                return np.asarray((values - self.low) / (self.high - self.low))
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log10(np.asarray(values, np.float64))
        low, high = np.log10(self.low), np.log10(self.high)
        return np.asarray((logs - low) / (high - low))

    def edges(self, count: int) -> Floats:
        """The ``count + 1`` borders of equally wide buckets."""
        if not self.log:
            return np.linspace(self.low, self.high, count + 1)
        return np.logspace(np.log10(self.low), np.log10(self.high), count + 1)


@dataclass(frozen=True)
class Envelope:
    """Statistics of the values in each of ``len(low)`` buckets along x; NaN in empty ones."""

    low: Floats
    high: Floats
    first: Floats
    last: Floats
    broken: Bools  # buckets with a non-finite value

    @property
    def filled(self) -> Bools:
        """Buckets with a finite value."""
        return ~np.isnan(self.low)


def envelope(
    x: Floats, y: Floats, scale: Scale, buckets: int, extremes: Extremes | None = None
) -> Envelope:
    """Smallest, largest, first and last finite ``y`` of each bucket; ``x`` is ascending.

    The last bucket includes its right border, so the newest point is always drawn. ``extremes`` are
    those of ``y``: the same comes out, but of a bucket with many points only those at its edges are
    looked at.
    """
    borders = np.searchsorted(x, scale.edges(buckets))
    borders[-1] = np.searchsorted(x, scale.high, side="right")
    starts, ends = borders[:-1], borders[1:]
    has = ends > starts
    low, high, first, last = (np.full(buckets, np.nan) for _ in range(4))
    broken = np.zeros(buckets, bool)
    if not has.any():
        return Envelope(low, high, first, last, broken)
    starts, ends = starts[has], ends[has]
    if extremes is not None and ends[-1] - starts[0] > _MANY * extremes.BLOCK * buckets:
        low[has], high[has], broken[has] = _spans_by_blocks(y, starts, ends, extremes)
    else:
        low[has], high[has], broken[has] = _spans(y[starts[0] : ends[-1]], starts - starts[0])
    first[has], last[has] = y[starts], y[ends - 1]
    first = np.where(np.isfinite(first), first, high)
    last = np.where(np.isfinite(last), last, high)
    return Envelope(low, high, first, last, broken)


def reach(
    x: Floats, y: Floats, scale: Scale, extremes: Extremes | None = None
) -> tuple[float, float] | None:
    """Smallest and largest finite ``y`` inside the scale; ``None`` if there is none."""
    begin = int(np.searchsorted(x, scale.edges(1)[0]))
    end = int(np.searchsorted(x, scale.high, side="right"))
    values = y[begin:end]
    if extremes is not None and end - begin > _MANY * extremes.BLOCK:
        block = extremes.BLOCK
        first, last = begin // block + 1, min(end // block, len(extremes))
        inner = extremes["low"][first:last], extremes["high"][first:last]
        values = np.concatenate([y[begin : first * block], *inner, y[last * block : end]])
    if len(values) and not (np.isfinite(values.min()) and np.isfinite(values.max())):
        values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if len(values) else None


def _spans(values: Floats, starts: Ints) -> tuple[Floats, Floats, Bools]:
    """Smallest and largest finite value from each start to the next, and whether one is not."""
    broken = np.zeros(len(starts), bool)
    with np.errstate(invalid="ignore", over="ignore"):
        total = values.sum(dtype=np.float64)  # not finite if any value is not
    if not np.isfinite(total):
        bad = ~np.isfinite(values)
        values = np.where(bad, np.nan, values)
        broken = np.add.reduceat(bad, starts) > 0
    return np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts), broken


def _spans_by_blocks(
    y: Floats, starts: Ints, ends: Ints, extremes: Extremes
) -> tuple[Floats, Floats, Bools]:
    """Like ``_spans`` of ``y[start:end]``, with whole blocks taken from ``extremes``."""
    block = extremes.BLOCK
    begin, end = starts // block + 1, np.minimum(ends // block, len(extremes))
    whole = end > begin
    # What lies before the whole blocks (never nothing) and behind them, bucket by bucket.
    pieces = (
        np.stack([starts, np.where(whole, begin * block, ends)], 1),
        np.stack([np.where(whole, end * block, ends), ends], 1),
    )
    edges = np.stack(pieces, 1).reshape(-1, 2)
    sizes = edges[:, 1] - edges[:, 0]
    offsets = np.cumsum(sizes) - sizes
    index = np.repeat(edges[:, 0] - offsets, sizes) + np.arange(sizes.sum())
    low, high, broken = _spans(y[index], offsets[::2])
    pairs = np.stack([begin[whole], end[whole]], 1).reshape(-1)
    if len(pairs):
        # ``reduceat`` wants every index inside: one more value, which no result contains.
        lows, highs, odd = (np.append(extremes[n], 0) for n in ("low", "high", "broken"))
        low[whole] = np.fmin(low[whole], np.fmin.reduceat(lows, pairs)[::2])
        high[whole] = np.fmax(high[whole], np.fmax.reduceat(highs, pairs)[::2])
        broken[whole] |= np.add.reduceat(odd, pairs)[::2] > 0
    return low, high, broken


def dots_of(values: Floats, scale: Scale, rows: int) -> Ints:
    """The dot row (0 at the top) of each value, clamped to the plot; -1 for non-finite ones."""
    unit = scale.unit(values)
    # A non-positive value on a logarithmic axis is drawn at its lower end.
    unit = np.where(np.isneginf(unit) | (np.isnan(unit) & ~np.isnan(values)), 0.0, unit)
    row = np.rint((1.0 - np.clip(unit, 0.0, 1.0)) * (rows - 1))
    return np.where(np.isnan(row), -1, row).astype(np.int64)


def raster(band: Envelope, scale: Scale, rows: int, *, joined: bool = True) -> Bools:
    """(rows, buckets) of dots: each bucket's span, joined to the next unless there is a gap."""
    values = np.stack([band.high, band.low, band.first, band.last])
    top, bottom, first, last = dots_of(values, scale, rows)
    filled = band.filled
    if joined and filled.any():
        _join(band, first, last, top, bottom)
        filled = top >= 0
    level = np.arange(rows)[:, None]
    return np.asarray((level >= top) & (level <= bottom) & filled)


def _join(band: Envelope, first: Ints, last: Ints, top: Ints, bottom: Ints) -> None:
    """Stretch spans in place so that the line has no holes, interpolating across empty buckets.

    ``first`` and ``last`` are the dot rows of each bucket's first and last value.
    """
    at = np.flatnonzero(band.filled)
    left, right = at[:-1], at[1:]
    from_row, to_row = last[left], first[right]
    breaks = np.cumsum(band.broken & ~band.filled)
    together = breaks[left] == breaks[right]
    touching = together & (right == left + 1)
    middle = (from_row + to_row) // 2
    for side, rows_there in ((left, from_row), (right, to_row)):
        s, m, r = side[touching], middle[touching], rows_there[touching]
        np.minimum.at(top, s, np.minimum(m, r))
        np.maximum.at(bottom, s, np.maximum(m, r))
    far = together & (right > left + 1)
    if far.any():
        a, b, begin, rise = left[far], right[far], from_row[far], (to_row - from_row)[far]
        gap = np.repeat(np.arange(len(a)), b - a - 1)  # the gap of each empty bucket
        before = np.cumsum(band.filled) - 1  # place in ``at`` of the last filled bucket; -1: none
        between = np.flatnonzero(np.append(far, False)[before] & ~band.filled)
        line = begin[gap] + rise[gap] * (between - a[gap]) / (b - a)[gap]
        row = np.rint(line).astype(np.int64)
        slope = (np.abs(rise) // (2 * (b - a)))[gap]
        top[between], bottom[between] = row - slope, row + slope


def braille(dots: Bools) -> NDArray[np.uint32]:
    """Convert (4H, 2W) dots to (H, W) code points; 0 stands for an empty cell."""
    height, width = dots.shape[0] // 4, dots.shape[1] // 2
    cells = dots.reshape(height, 4, width, 2)
    codes = np.einsum("hrwc,rc->hw", cells, _BITS, dtype=np.uint32)
    return np.where(codes > 0, codes + 0x2800, 0).astype(np.uint32)


def sparkline(values: Floats, width: int, *, ascii_only: bool = False) -> str:
    """The last value of each of ``width`` equal parts as one of 8 bars; ``×`` if not finite."""
    bars = "_.:-=+*#" if ascii_only else "▁▂▃▄▅▆▇█"
    if not len(values):
        return " " * width
    count = min(width, len(values))
    ends = np.linspace(0, len(values), count + 1).astype(int)
    picked = np.asarray(values, np.float64)[ends[1:] - 1]
    finite = picked[np.isfinite(picked)]
    if not len(finite):
        return ("x" if ascii_only else "×") * count + " " * (width - count)
    low, span = finite.min(), np.ptp(finite)
    if span <= 1e-9 * max(abs(low), 1e-300):
        level = np.full(count, 3)
    else:
        level = np.clip(np.nan_to_num((picked - low) / span) * 8, 0, 7).astype(int)
    odd = "x" if ascii_only else "×"
    text = "".join(
        bars[k] if ok else odd
        for k, ok in zip(level.tolist(), np.isfinite(picked).tolist(), strict=True)
    )
    return text.rjust(width)
