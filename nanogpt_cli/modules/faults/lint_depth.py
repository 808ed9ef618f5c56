"""Trends of a role's std over depth: blocks that are out of theirs, and trends of no scheme."""

from __future__ import annotations

import math
from collections import Counter

import torch

from nanogpt_cli.init.lint import WARN, Verdict
from nanogpt_cli.modules.faults import chance
from nanogpt_cli.modules.faults.finding import blocks
from nanogpt_cli.modules.faults.scales import PROJECTIONS, Shape, same
from nanogpt_cli.modules.faults.sketch import Sketch

# Scales of blocks 0, 1, … that known schemes use.
_TRENDS = {"constant": 0.0, "1/√(l+1)": -0.5, "1/(l+1)": -1.0}


def over_depth(role: str, group: list[Sketch], shape: Shape) -> Verdict | None:
    """The verdict on a role with a block out of its trend, or with a trend that no scheme has."""
    found = (_on_trend(role, kind, shape) for kind in _kinds(group))
    return next((verdict for verdict in found if verdict), None)


def _kinds(group: list[Sketch]) -> list[list[Sketch]]:
    """A role's matrices, those apart that cannot be compared between blocks.

    Blocks of a hybrid have other matrices of one role: a recurrent one and an MLP have a gate each.
    Where a block has several shapes, a kind is those of one shape, as many in each of its blocks.
    """
    held = Counter((s.part.layer, s.shape) for s in group)
    if len(set(held.values())) == 1 and len({layer for layer, _ in held}) == len(held):
        return [group]
    kinds: dict[tuple[tuple[int, int], int], list[Sketch]] = {}
    for s in group:
        kinds.setdefault((s.shape, held[s.part.layer, s.shape]), []).append(s)
    return list(kinds.values())


def _on_trend(role: str, group: list[Sketch], shape: Shape) -> Verdict | None:
    layers = _layers(group)
    if len(layers) < 3:
        return None
    n = min(sum(s.size for s in found) for found in layers.values())
    index = torch.tensor(list(layers), dtype=torch.float64)
    square = torch.tensor(
        [sum(s.std**2 * s.size for s in g) / sum(s.size for s in g) for g in layers.values()],
        dtype=torch.float64,
    )
    off = {name: _off(square, (index + 1) ** (2 * power), n) for name, power in _TRENDS.items()}
    if not min(len(found) for found in off.values()):
        return None
    mistakes = {
        "reversed": (shape.L - index, "largest in the last block where it should be in the first: "
                     "the index of the block runs backwards"),
        "shifted": (index + 2, "1/√(l+2) over blocks l = 0, 1, …: the index is one too "
                    "large; 1/√(l+1) begins with 1"),
        "clamped": (index.clamp_min(1), "alike in blocks 0 and 1 and 1/√l beyond: the index of the "
                    "block begins with 0; use 1/√(l+1)"),
    }  # fmt: skip
    for depth, why in mistakes.values():
        if not _off(square, 1 / depth, n):
            return Verdict(WARN, "depth-order", f"{role}: its std is {why}")
    name = min(off, key=lambda trend: len(off[trend]))
    odd = off[name]
    if len(odd) > max(1, len(layers) // 3):
        stds = ", ".join(f"{x:.3g}" for x in square.sqrt().tolist()[:6])
        text = (
            f"{role}: its std follows no trend over depth ({stds}, …): blocks drawn by other laws"
        )
        return Verdict(WARN, "depth-order", text)
    return _odd_blocks(role, layers, square, (index + 1) ** (2 * _TRENDS[name]), odd, shape)


def _layers(group: list[Sketch]) -> dict[int, list[Sketch]]:
    """A role's matrices by block, without those that are zero."""
    layers: dict[int, list[Sketch]] = {}
    for s in sorted(group, key=lambda s: s.part.layer):
        if s.part.layer >= 0 and s.std > 0:
            layers.setdefault(s.part.layer, []).append(s)
    return layers


def _off(square: torch.Tensor, trend: torch.Tensor, n: int) -> list[int]:
    """Positions whose mean square is off ``trend`` times a common factor."""
    ratio = square / trend
    # Half of the values are counted: the median that they are compared with scatters as well.
    rate = chance.of_variance(ratio / ratio.median(), n / 2)
    return [i for i, x in enumerate(rate.tolist()) if x > chance.limit(100 * len(square))]


def _odd_blocks(
    role: str,
    layers: dict[int, list[Sketch]],
    square: torch.Tensor,
    trend: torch.Tensor,
    odd: list[int],
    shape: Shape,
) -> Verdict:
    ratio = (square / trend).sqrt()
    ratio /= ratio.median()
    worst = max(odd, key=lambda i: abs(math.log(float(ratio[i]))))
    factor, names = float(ratio[worst]), list(layers)
    depth = math.sqrt(2 * shape.L)
    why = "drawn by another law, or scaled twice"
    if role in PROJECTIONS and same(factor, depth):
        why = "the depth factor 1/√(2L) is missing there"
    elif role in PROJECTIONS and same(factor, 1 / depth):
        why = "the depth factor 1/√(2L) is there alone"
    elif all(s.uniform for s in layers[names[worst]]):
        why = "uniform as torch's default: never loaded or initialised?"
    key = layers[names[worst]][0].key
    text = (
        f"{role} in {blocks(names[i] for i in odd)} is {factor:.3g} times as large as in the other "
        f"blocks ({key}, std {math.sqrt(float(square[worst])):.3g}): {why}"
    )
    return Verdict(WARN, "odd-block", text, factor)
