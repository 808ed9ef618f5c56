"""A run's samples of its machine in memory: CPU, memory, disk, GPUs, and where the time went."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nanogpt_cli.run.events import System
from nanogpt_cli.tui.state.history import Steps
from nanogpt_cli.tui.state.series import Columns, Floats

# Parts of the trainer's time, in the order of a step; ``training/step_times.py`` has the meanings.
PARTS = (
    "data", "compute", "optimizer", "statistics", "evaluation", "checkpoint", "sample", "paused",
    "other",
)  # fmt: skip
NUMBERS = (
    "seconds", "steps", "cores", "cpu", "load", "process_cpu", "memory_used", "memory_total",
    "group_used", "group_limit", "rss", "children", "children_rss", "disk_free", "disk_total",
)  # fmt: skip
GPU_NUMBERS = (
    "utilization", "memory_used", "memory_total", "torch_allocated", "torch_reserved",
    "torch_peak", "power_w", "power_limit_w", "temperature_c", "sm_mhz", "sm_max_mhz",
    "memory_mhz",
)  # fmt: skip
MOST_ROWS = 100_000  # six days at a sample every five seconds; of longer runs every other is kept
MOST_GPUS = 64  # a log may name any number
_PLACE = {"clock": "f8", "time": "f8", "step": "f8"}


class MachineHistory:
    """Every sample so far as columns; NaN stands for what the system did not tell.

    ``clock`` is the sample's time (seconds since the epoch), ``time`` its second of the training.
    """

    def __init__(self, most: int = MOST_ROWS) -> None:
        self.columns = Columns(**_PLACE, **dict.fromkeys(NUMBERS, "f8"))
        self.times = Columns(**_PLACE, **dict.fromkeys(PARTS, "f8"))
        self.gpus: dict[str, Columns] = {}
        self.last: System | None = None
        self._most = most

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, name: str) -> Floats:
        return self.columns[name]

    def append(self, event: System, time: float) -> None:
        """Add a sample that was taken at second ``time`` of the training."""
        if len(self):
            time = max(time, float(self["time"][-1]))
        place = {"clock": event.time, "time": time, "step": float(event.step)}
        self.columns.extend(_row(place | {key: _number(getattr(event, key)) for key in NUMBERS}))
        parts = {part: _number(event.times.get(part, 0.0)) for part in PARTS}
        self.times.extend(_row(place | parts))
        for key, gpu in list(event.gpus.items())[:MOST_GPUS]:
            if isinstance(gpu, Mapping) and (key in self.gpus or len(self.gpus) < MOST_GPUS):
                store = self.gpus.setdefault(key, Columns(**_PLACE, **_gpu_columns()))
                store.extend(_row(place | {name: _number(gpu.get(name)) for name in GPU_NUMBERS}))
        self.last = event
        if len(self) > self._most:
            for columns in (self.columns, self.times, *self.gpus.values()):
                columns.keep(np.arange(len(columns) % 2, len(columns), 2))

    def resume(self, after: float) -> None:
        """Drop the samples beyond a step."""
        for columns in (self.columns, self.times, *self.gpus.values()):
            columns.truncate(int(np.searchsorted(columns["step"], after, side="right")))

    def spent(self, seconds: float = math.inf, until: int | None = None) -> dict[str, float]:
        """Seconds of every part in the last samples that span about so many ``seconds``.

        Args:
            seconds: how far to look back.
            until: index of the last sample that counts; ``None``: the newest.
        """
        end = len(self) if until is None else until + 1
        start = self._first(seconds, end)
        return {part: float(np.nansum(self.times[part][start:end])) for part in PARTS}

    def recent(self, name: str, seconds: float, until: int | None = None) -> float:
        """The mean of a number over the same samples, weighted by their lengths; NaN without."""
        end = len(self) if until is None else until + 1
        start = self._first(seconds, end)
        values, weights = self[name][start:end], self["seconds"][start:end]
        known = np.isfinite(values) & (weights > 0)
        return float(np.average(values[known], weights=weights[known])) if known.any() else math.nan

    def gpu_recent(self, name: str, seconds: float) -> float:
        """The mean of a number over recent samples of all GPUs; NaN without one."""
        start = float(self["clock"][-1]) - seconds if len(self) else 0.0
        found = [gpu[name][gpu["clock"] > start] for gpu in self.gpus.values()]
        values = np.concatenate(found) if found else np.empty(0)
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else math.nan

    def _first(self, seconds: float, end: int) -> int:
        if not math.isfinite(seconds) or end <= 0:
            return 0
        earliest = float(self["clock"][end - 1]) - seconds
        return int(np.searchsorted(self["clock"][:end], earliest, side="right"))


def positions(columns: Columns, steps: Steps, axis: str) -> Floats:
    """The x values of samples: between two steps, a sample lies where its time does."""
    time = columns["time"]
    if axis == "time" or not len(steps):
        return time
    return np.maximum.accumulate(np.interp(time, steps["time"], steps[axis]))


def _row(values: Mapping[str, float]) -> dict[str, Floats]:
    return {name: np.array([value]) for name, value in values.items()}


def _gpu_columns() -> dict[str, str]:
    return dict.fromkeys(GPU_NUMBERS, "f8")


def _number(value: Any) -> float:
    """A number of a log; none of what is sampled can be negative, or beyond any machine."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if known and 0 <= value < 1e18 else math.nan
