"""What an activation does to Gaussian pre-activations, by quadrature with the standard library.

``init.kernels`` has the same moments in closed form, for theory; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SILENT: Final = 0.01  # of the layer's RMS, as a dead unit is judged
_REACH, _CELLS = 8.0, 2000


@dataclass(frozen=True)
class Moments:
    """Of outputs φ(x) for pre-activations x of one variance; of a gated MLP, of φ(g)·v.

    Attributes:
        silent: share of outputs below ``SILENT`` of their RMS.
        slope: mean of φ′; of a gated MLP that of the gate, whose sign v makes random.
        slope_rms: RMS of φ′; of a gated MLP over the paths through gate and value together.
        second: E[φ²].
    """

    silent: float
    slope: float
    slope_rms: float
    second: float


def _gelu(x: float) -> tuple[float, float]:
    below = 0.5 * (1 + math.erf(x / math.sqrt(2)))
    return x * below, below + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh(x: float) -> tuple[float, float]:
    k, a = math.sqrt(2 / math.pi), 0.044715
    t = math.tanh(k * (x + a * x**3))
    return x * (1 + t) / 2, (1 + t) / 2 + x * (1 - t * t) * k * (1 + 3 * a * x * x) / 2


def _silu(x: float) -> tuple[float, float]:
    s = 1 / (1 + math.exp(-x)) if x > -700 else 0.0
    return x * s, s * (1 + x * (1 - s))


_FUNCTIONS: Final[dict[str, Callable[[float], tuple[float, float]]]] = {
    "gelu": _gelu, "gelu_tanh": _gelu_tanh, "silu": _silu,
    "relu": lambda x: (max(x, 0.0), float(x > 0)),
    "relu2": lambda x: (max(x, 0.0) ** 2, 2 * max(x, 0.0)),
}  # fmt: skip
_GATES: Final = {"swiglu": "silu", "geglu": "gelu"}


def moments(activation: str, variance: float) -> Moments:
    """Moments of an activation (a value of ``model.activation``) at a variance above zero."""
    function = _FUNCTIONS[_GATES.get(activation, activation)]
    step = 2 * _REACH / _CELLS
    points = [-_REACH + (i + 0.5) * step for i in range(_CELLS)]  # never at ReLU's corner
    weights = [math.exp(-z * z / 2) * step / math.sqrt(2 * math.pi) for z in points]
    found = [function(z * math.sqrt(variance)) for z in points]

    def mean(values: list[float]) -> float:
        return sum(w * v for w, v in zip(weights, values, strict=True))

    second = mean([y * y for y, _ in found])
    slope, slopes = mean([s for _, s in found]), mean([s * s for _, s in found])
    if activation not in _GATES:
        small = SILENT * math.sqrt(second)
        return Moments(mean([float(abs(y) < small) for y, _ in found]), slope,
                       math.sqrt(slopes), second)  # fmt: skip
    both = second * variance
    small = SILENT * math.sqrt(both)
    reach = math.sqrt(2 * variance)
    silent = mean([math.erf(small / (max(abs(y), 1e-300) * reach)) for y, _ in found])
    return Moments(silent, 0.0, math.sqrt(slopes * variance + second), both)
