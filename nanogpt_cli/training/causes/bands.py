"""When a statistic leaves the band that its own healthy past predicts. Pure arithmetic.

The band of the next value is a robust line through the last ones that were inside: the median of
their slopes (Theil 1950, Sen 1968), six robust standard deviations (1.4826 median absolute
deviations) of the residuals to either side, and never narrower than the caller's floor. A value
above the band must also be as far above the level of the newest values inside, and one below it
below: a loss that falls ever more slowly leaves the line upwards without rising.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# Observations that a band is made of, and fewest that make one.
_MEMORY, FEWEST = 24, 8
_SIGMAS = 6.0
# A band is not extrapolated further than this many of its own observations.
_REACH = 8
# Values inside again, one after the other, that end an excursion.
_CALM = 2


@dataclass(frozen=True)
class Line:
    """A robust line: value(t) = middle + slope · (t - at), with the spread around it."""

    at: float
    middle: float
    slope: float
    spread: float

    def value(self, step: float, reach: float = math.inf) -> float:
        """The line at a step, held constant beyond ``reach`` steps."""
        return self.middle + self.slope * min(step - self.at, reach)


@dataclass(frozen=True)
class Departure:
    """A series left its band and did not come back.

    Attributes:
        step: of the first value outside.
        value: that value.
        usual: what the band was around then.
        sigmas: how far outside, in robust standard deviations, with its sign.
    """

    step: int
    value: float
    usual: float
    sigmas: float


def fit(points: Sequence[tuple[int, float]]) -> Line:
    """The robust line through points (step, value); at least one."""
    steps, values = [float(s) for s, _ in points], [v for _, v in points]
    slopes = [
        (values[j] - values[i]) / (steps[j] - steps[i])
        for i in range(len(points))
        for j in range(i + 1, len(points))
        if steps[j] > steps[i]
    ]
    slope = median(slopes) if len(points) >= FEWEST and slopes else 0.0
    at = median(steps)
    middle = median(v - slope * (s - at) for s, v in zip(steps, values, strict=True))
    off = [abs(v - middle - slope * (s - at)) for s, v in zip(steps, values, strict=True)]
    return Line(at, middle, slope, 1.4826 * median(off))


def departure(
    points: Sequence[tuple[int, float]],
    until: int,
    *,
    upward: bool = True,
    downward: bool = True,
    floor: float = 0.0,
) -> Departure | None:
    """Where a series left its band for good before or at step ``until``; ``None`` if it did not.

    Args:
        points: (step, value) in order; a value may be NaN or infinite, which is outside.
        until: the step of the event; later values are not looked at.
        upward, downward: whether a value above or below the band counts.
        floor: half the narrowest band.
    """
    inside: list[tuple[int, float]] = []
    found: Departure | None = None
    calm = 0
    line: Line | None = None
    for step, value in points:
        if step > until:
            break
        if len(inside) < FEWEST:
            if math.isfinite(value):
                inside.append((step, value))
            continue
        if found is None or line is None:
            line = fit(inside[-_MEMORY:])
        off = _outside(line, inside, step, value, floor)
        if (off > 0 and upward) or (off < 0 and downward):
            calm = 0
            found = found or Departure(step, value, _usual(line, inside, step, value), off)
            continue
        calm += found is not None
        if calm >= _CALM:
            found, calm = None, 0
        if found is None and math.isfinite(value):
            inside.append((step, value))
    return found


def _reach(inside: Sequence[tuple[int, float]]) -> float:
    """How many steps beyond the middle of its points a line is believed."""
    last = inside[-_MEMORY:]
    return (last[-1][0] - last[0][0]) * (0.5 + _REACH / max(1, len(last)))


def _usual(line: Line, inside: Sequence[tuple[int, float]], step: int, value: float) -> float:
    """What a value is compared with: the line, or the newest level where that is nearer to it."""
    usual = line.value(step, _reach(inside))
    level = median(v for _, v in inside[-FEWEST:])
    low, high = sorted((usual, value))
    return min(max(level, low), high)  # the level, as far as it lies between the two


def _outside(
    line: Line, inside: Sequence[tuple[int, float]], step: int, value: float, floor: float
) -> float:
    """Robust standard deviations beyond the band, 0 within it; the sign is the side."""
    if not math.isfinite(value):
        return math.inf if value != -math.inf else -math.inf
    width = max(_SIGMAS * line.spread, floor, 1e-12)
    off = value - _usual(line, inside, step, value)
    return off / (width / _SIGMAS) if abs(off) > width else 0.0
