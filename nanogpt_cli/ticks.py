"""Positions of axis labels: 1-2-5 steps on linear axes, decades on logarithmic ones."""

from __future__ import annotations

import math

from nanogpt_cli import units


def linear(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` values within ``[low, high]``, 1, 2 or 5 times a power of ten apart."""
    span = high - low
    if most < 1 or not math.isfinite(span) or span <= 0:
        return []
    exponent = math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20, 50, 100):
        # Multiply or divide integers by a power of ten, for 0.3 instead of 0.30000000000000004.
        step = factor * 10.0**exponent
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            scale = 10.0 ** abs(exponent)
            return [
                k * factor / scale if exponent < 0 else k * factor * scale
                for k in range(first, last + 1)
            ]
    return []


def log10(low: float, high: float, most: int) -> list[float]:
    """Values for a logarithmic axis: decades, with multiples in between if there is room."""
    if most < 1 or not 0 < low < high:
        return []
    exponents = range(math.floor(math.log10(low) - 1e-9), math.ceil(math.log10(high) + 1e-9) + 1)
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [
            float(f"{factor}e{e}")
            for e in exponents
            for factor in factors
            if low * (1 - 1e-9) <= float(f"{factor}e{e}") <= high * (1 + 1e-9)
        ]
        if len(found) <= most and (len(found) >= 2 or factors == (1,)):
            return found
        if len(found) < 2:
            return linear(low, high, most)
    decades = [float(f"1e{e}") for e in exponents if low <= float(f"1e{e}") <= high]
    return decades[:: max(1, -(-len(decades) // most))]


_CLOCK = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


def clock(low: float, high: float, most: int) -> list[float]:
    """Whole seconds, minutes, hours or days within ``[low, high]``, which are seconds."""
    for step in _CLOCK:
        if (high - low) / step <= most:
            return [float(step * k) for k in range(math.ceil(low / step), int(high // step) + 1)]
    return [86400 * day for day in linear(low / 86400, high / 86400, most)]


def values(low: float, high: float, most: int, log: bool, axis: str = "") -> list[float]:
    """Tick values of a linear or logarithmic axis."""
    if log:
        return log10(low, high, most)
    if axis == "time":
        return clock(low, high, most)
    found = linear(low, high, most)
    return [value for value in found if value == round(value)] if axis == "block" else found


def labels(at: list[float], axis: str = "") -> list[str]:
    """Tick labels of equal precision, with time units or SI suffixes."""
    if axis == "layer":
        return [f"h.{value:.0f}" if value == round(value) else "" for value in at]
    if axis == "time":
        return [units.short_time(value) for value in at]
    for digits in range(2, 8):
        texts = [_label(value, digits) for value in at]
        if len(set(texts)) == len(texts):
            return _even(texts, at)
    return [_label(value, 8) for value in at]


def _label(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace(".0e", "e")
    return units.si(value, digits)


def _even(texts: list[str], at: list[float]) -> list[str]:
    """The same number of decimals on every plain label: 2.0, 2.5, 3.0."""
    plain = all(text.replace("-", "").replace(".", "").isdigit() for text in texts)
    if not plain or max(map(abs, at), default=0) < 0.01:
        return texts
    decimals = max((len(t.partition(".")[2]) for t in texts), default=0)
    return [f"{value:.{decimals}f}" for value in at]


# No axis goes further (as a value, as a power of ten), so that differences and paddings of its
# ends stay finite.
_LARGEST, _FURTHEST = 1e300, 307.0


def padded_bounds(values: list[tuple[float, float]], log: bool) -> tuple[float, float]:
    """Axis bounds around all ``(low, high)`` with some padding; never empty, never NaN."""
    finite = [(float(a), float(b)) for a, b in values if math.isfinite(a) and math.isfinite(b)]
    if not finite:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low = min(max(min(a for a, _ in finite), -_LARGEST), _LARGEST)
    high = min(max(max(b for _, b in finite), -_LARGEST), _LARGEST)
    if log:
        low, high = math.log10(low), math.log10(high)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-300):
        spread = 0.5 if log else max(abs(low) * 0.05, 1e-6)
    else:
        spread = (high - low) * 0.03
    low, high = low - spread, high + spread
    if log:
        low, high = 10.0 ** max(low, -_FURTHEST), 10.0 ** min(high, _FURTHEST)
    return float(low), float(high)
