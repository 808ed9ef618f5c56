"""Matrices by role: their typical std, what schemes need to know of a module, and comparisons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from nanogpt_cli.modules.anatomy import MATRICES
from nanogpt_cli.modules.faults.lint_values import TABLES
from nanogpt_cli.modules.faults.sketch import Sketch

# The matrices that write to the residual stream.
PROJECTIONS = ("attn_proj", "mlp_proj")
_JUDGED = (*TABLES, *(role for role in MATRICES if role != "router"))
# Stds whose logarithms differ by less are one law's.
CLOSE = 0.03


@dataclass(frozen=True)
class Shape:
    """What a scheme's formulas need to know: channels, layers, rows of the tables, tying."""

    d: int
    L: int
    V: int
    T: int
    tied: bool = False

    def values(self, s: Sketch) -> dict[str, float]:
        """The variables of ``schemes.laws`` for one matrix."""
        fans = {"fan_out": s.shape[0], "fan_in": s.shape[1], "l": max(0, s.part.layer)}
        return {"d": self.d, "L": self.L, "V": self.V, "T": self.T, "D": 64, **fans}


def by_role(sketches: list[Sketch]) -> dict[str, list[Sketch]]:
    """Judged matrices by role."""
    roles: dict[str, list[Sketch]] = {}
    for s in sketches:
        if s.part.role in _JUDGED and not s.broken and not s.vector:
            roles.setdefault(s.part.role, []).append(s)
    return roles


def typical(group: list[Sketch]) -> float:
    """The median std of a role's matrices that are not zero, which one block does not change."""
    return median([s.std for s in group if s.std > 0] or [0.0])


def same(a: float, b: float, tolerance: float = CLOSE) -> bool:
    """Whether two positive figures differ by less than ``tolerance`` in their logarithm."""
    return a > 0 and b > 0 and abs(math.log(a / b)) < tolerance


def tolerance(group: list[Sketch]) -> float:
    """How far chance moves the logarithm of a role's typical std: 6 standard errors."""
    return 6 / math.sqrt(2 * min(s.size for s in group))
