"""A run's numbers in memory: steps, and statistics of every layer over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt_cli.tui.state.series import MANY, Columns, Floats, Smoothed, thin

AXES = ("step", "tokens", "time", "flops")
METRICS = ("loss", "lr", "grad_norm", "tokens_per_s", "step_s")
# A column's value for what was not measured; none of those metrics can be so small.
UNKNOWN = -np.inf
OPTIONAL = ("lr", "grad_norm", "tokens_per_s")
SMOOTHING = (0.0, 0.6, 0.9, 0.98, 0.995)
LONGEST_GAP = 900.0  # seconds between two events that still count as training
MOST_STEPS = 2_000_000
MOST_LAYER_ROWS = 20_000


class Steps:
    """Every step so far as columns, with about 45 bytes per step; thinned beyond ``MOST_STEPS``.

    The columns of x axes (``step``, ``tokens``, ``time`` in seconds of training) never decrease.
    """

    def __init__(self, most: int = MOST_STEPS) -> None:
        self.columns = Columns(
            step="f8", tokens="f8", time="f8", **dict.fromkeys(METRICS, "f4"), clipped="?"
        )
        self.out_of_order = 0
        self.flops_per_token = 0.0
        self.thinned = False
        self._most = most
        self._smooth: dict[tuple[str, float], Smoothed] = {}
        self._clock: float | None = None
        self._elapsed = 0.0

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, name: str) -> Floats:
        if name == "flops":
            return self.columns["tokens"] * self.flops_per_token
        return self.columns[name]

    def extend(self, table: Mapping[str, Floats]) -> None:
        """Append steps; those whose number does not increase are counted and left out."""
        last = self.columns["step"][-1] if len(self) else -1.0
        table = self._ascending(table, float(last))
        if not len(table["step"]):
            return
        rows = {name: _finite_or_nan(table[name]) for name in METRICS}
        for name in OPTIONAL:
            rows[name] = np.where(table[name] == UNKNOWN, UNKNOWN, rows[name])
        rows |= {"step": table["step"], "clipped": table["clipped"]}
        rows["time"] = self._training_time(table["time"], table["step_s"])
        tokens = np.nan_to_num(table["tokens"])
        floor = self.columns["tokens"][-1] if len(self) else 0.0
        rows["tokens"] = np.maximum.accumulate(np.maximum(tokens, floor))
        self.columns.extend(rows)
        if len(table["step"]) >= MANY:
            for (metric, _), smooth in self._smooth.items():
                smooth.update(self.columns[metric])
        if len(self) > self._most:
            self._thin()

    def _ascending(self, table: Mapping[str, Floats], last: float) -> Mapping[str, Floats]:
        steps = table["step"]
        if steps[0] > last and (np.diff(steps) > 0).all():
            return table
        peak = np.maximum.accumulate(np.concatenate([[last], steps]))[:-1]
        advances = steps > peak
        self.out_of_order += int((~advances).sum())
        return {name: values[advances] for name, values in table.items()}

    def _training_time(self, times: Floats, step_s: Floats) -> Floats:
        """Seconds of training at each step, without jumps of the clock and pauses."""
        before = times[0] - step_s[0] if self._clock is None else self._clock
        gaps = np.diff(times, prepend=before)
        sane = np.isfinite(gaps) & (gaps >= 0) & (gaps <= LONGEST_GAP)
        gaps = np.where(sane, gaps, np.nan_to_num(np.maximum(step_s, 0.0)))
        elapsed = self._elapsed + np.cumsum(gaps)
        self._clock, self._elapsed = float(times[-1]), float(elapsed[-1])
        return elapsed

    def tick(self, time: float) -> None:
        """Count the time up to an event that is not a step as training time."""
        if self._clock is not None and 0 <= time - self._clock <= LONGEST_GAP:
            self._elapsed += time - self._clock
        if time > 0 and self._clock is not None:
            self._clock = time

    def moment(self, time: float) -> float:
        """The second of training at a time near the newest event's."""
        gap = 0.0 if self._clock is None else time - self._clock
        return max(0.0, self._elapsed + (gap if abs(gap) <= LONGEST_GAP else 0.0))

    def resume(self, after: float) -> None:
        """Drop the steps beyond ``after``, which will be repeated."""
        cut = int(np.searchsorted(self.columns["step"], after, side="right"))
        if cut < len(self):
            for smooth in self._smooth.values():
                smooth.update(self.columns["step"][:0])
        self.columns.truncate(cut)
        self._elapsed = float(self.columns["time"][-1]) if len(self) else 0.0
        self._clock = None

    def smooth(self, metric: str, beta: float) -> Floats:
        """The debiased exponential moving average of ``metric`` over all steps."""
        return self.smoothed(metric, beta)["ema"]

    def smoothed(self, metric: str, beta: float) -> Columns:
        """``smooth`` as the column ``ema``."""
        key = (metric, beta)
        if key not in self._smooth:
            self._smooth[key] = Smoothed(beta)
        self._smooth[key].update(self.columns[metric])
        return self._smooth[key].values

    def _thin(self) -> None:
        for (metric, _), smooth in self._smooth.items():
            smooth.update(self.columns[metric])
        keep = thin(self.columns, ("loss", "grad_norm", "tokens_per_s"))
        self.columns.keep(keep)
        for smooth in self._smooth.values():
            smooth.keep(keep)
        self.thinned = True

    def at(self, axis: str, step: float) -> float:
        """The position of ``step`` on another axis, interpolated linearly between known steps."""
        if axis == "step" or not len(self):
            return step
        return float(np.interp(step, self.columns["step"], self[axis]))

    def nearest(self, axis: str, position: float) -> int | None:
        """The step nearest to a position on an axis; ``None`` before there is one."""
        if not len(self):
            return None
        return int(self.columns["step"][np.abs(self[axis] - position).argmin()])

    def measured(self, metric: str) -> NDArray[np.bool_]:
        """Of which steps a metric is known; one that was measured may be NaN."""
        return np.asarray(self.columns[metric] != UNKNOWN)

    def all_measured(self, metric: str) -> bool:
        """Whether a metric is known of every step, found out without a look at most of them."""
        blocks, column = self.columns.extremes(metric), self.columns[metric]
        rest = column[len(blocks) * blocks.BLOCK :]
        return not blocks["endless"].any() and bool((rest != UNKNOWN).all())

    def latest(self, metric: str) -> float | None:
        """The newest value of a metric that is known; ``None`` if there is none."""
        column = self.columns[metric]
        for part in (column[-100:], column):
            known = part[part != UNKNOWN]
            if len(known):
                return float(known[-1])
        return None

    def clip_share(self, last: int = 200) -> float:
        """Share of the latest steps whose gradient was clipped."""
        return float(self.columns["clipped"][-last:].mean()) if len(self) else 0.0

    def recent(self, metric: str, last: int = 50) -> float:
        """Median of the latest values, NaN when there are none."""
        values = self.columns[metric][-last:]
        values = values[np.isfinite(values)]
        return float(np.median(values)) if len(values) else float("nan")


class StatisticHistory:
    """One statistic over time: the steps at which it was sampled, and (samples, layers) values."""

    def __init__(self) -> None:
        self.steps = Columns(step="f8")
        self._rows = np.empty((0, 0), np.float32)

    @property
    def values(self) -> NDArray[np.float32]:
        """(samples, layers); NaN was measured, or stands for a layer that was not."""
        return self._rows[: len(self.steps)]

    def append(self, step: float, row: Floats) -> None:
        """Add a sample; the number of layers may grow."""
        count, layers = len(self.steps), max(self._rows.shape[1], len(row))
        if count >= self._rows.shape[0] or layers > self._rows.shape[1]:
            grown = np.full((max(count + 1, 64, count * 3 // 2), layers), np.nan, np.float32)
            grown[:count, : self._rows.shape[1]] = self._rows[:count]
            self._rows = grown
        self._rows[count] = np.nan
        self._rows[count, : len(row)] = row
        self.steps.extend({"step": np.array([float(step)])})

    def truncate(self, after: float) -> None:
        """Drop the samples beyond a step."""
        self.steps.truncate(int(np.searchsorted(self.steps["step"], after, side="right")))

    def merge(self) -> None:
        """Halve the samples, keeping of each pair the one farther from the layer's median."""
        half = len(self.steps) // 2
        pairs = self._rows[: 2 * half].reshape(half, 2, -1)
        middle = np.nanmedian(np.nan_to_num(pairs).reshape(2 * half, -1), axis=0)
        far = np.abs(pairs[:, 1] - middle) > np.abs(pairs[:, 0] - middle)
        kept = np.where(far | np.isnan(pairs[:, 1]), pairs[:, 1], pairs[:, 0])
        self._rows[:half] = kept
        self.steps.keep(np.arange(half) * 2 + 1)


class LayerHistory:
    """Statistics of every layer over time; not every sample has every statistic."""

    def __init__(self, most: int = MOST_LAYER_ROWS) -> None:
        self.histograms: dict[float, Mapping[str, Any]] = {}
        self._most = most
        self._found: dict[str, StatisticHistory] = {}

    @property
    def layers(self) -> int:
        """Number of layers seen."""
        return max((item.values.shape[1] for item in self._found.values()), default=0)

    def names(self) -> list[str]:
        """Names of the statistics that have samples."""
        return [name for name, item in self._found.items() if len(item.steps)]

    def __len__(self) -> int:
        return max((len(item.steps) for item in self._found.values()), default=0)

    def values(self, name: str) -> NDArray[np.float32]:
        """(samples, layers) of one statistic."""
        found = self._found.get(name)
        return np.empty((0, 0), np.float32) if found is None else found.values

    def steps(self, name: str) -> Floats:
        """The steps at which a statistic was sampled."""
        found = self._found.get(name)
        return np.empty(0) if found is None else found.steps["step"]

    def append(self, step: float, stats: Mapping[str, Any], histograms: Mapping[str, Any]) -> None:
        """Add one sample, ignoring whatever is not a list of numbers."""
        for name, value in stats.items():
            row = numbers(value)
            item = self._found.setdefault(name, StatisticHistory())
            if not len(row) or (len(item.steps) and step <= item.steps["step"][-1]):
                continue
            item.append(step, row)
            if len(item.steps) > self._most:
                item.merge()
        if histograms:
            self.histograms[float(step)] = histograms
            if len(self.histograms) > 200:
                del self.histograms[next(iter(self.histograms))]

    def resume(self, after: float) -> None:
        """Drop the samples beyond ``after``."""
        for item in self._found.values():
            item.truncate(after)
        self.histograms = {s: h for s, h in self.histograms.items() if s <= after}


def _finite_or_nan(values: Floats) -> Floats:
    return np.where(np.abs(values) < 3e38, values, np.nan)


def numbers(value: Any) -> Floats:
    """A list of numbers from a log as an array; empty for anything else."""
    if not isinstance(value, (list, tuple)):
        return np.empty(0)
    try:
        row = np.array([np.nan if item is None else item for item in value], np.float64)
    except (TypeError, ValueError):
        return np.empty(0)
    return _finite_or_nan(row) if row.ndim == 1 else np.empty(0)
