"""Histograms of large tensors, counted where the tensors lie and moved to the host at once.

``torch.histc`` has no deterministic form on CUDA, and its edges would have to be known on the host
first. Here a value's bin is float32 arithmetic that every device rounds alike, and counts are whole
numbers, so the result depends neither on the device nor on the order of adding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

BINS = 32
# Values that a CPU works on at once.
_AT_ONCE = 1 << 16
# Half the width of values that differ; float32 has no reciprocal of much less.
_NARROWEST = 1e-36


def histograms(groups: Mapping[str, Sequence[Sequence[Tensor]]]) -> dict[str, dict[str, Any]]:
    """Counts per row over the common edges of each group, with one transfer for all of them.

    Edges are equally spaced from a group's smallest to its largest finite value; what is not finite
    is not counted. A value within rounding of an edge may be counted on either side of it.

    Args:
        groups: rows by name; a row is one or more tensors of any shape.

    Returns:
        ``edges`` (33) and ``counts`` (rows, 32) by name; nothing of groups without a finite value.
    """
    tables = [_table(rows) for rows in groups.values()]
    if not tables:
        return {}
    device = tables[-1].device
    whole = torch.cat([table.to(device) for table in tables]).cpu()  # the only transfer
    found = {}
    for name, table in zip(groups, torch.split(whole, [len(t) for t in tables]), strict=True):
        low, high = table[0, :2].view(torch.float32).tolist()
        if math.isfinite(low):
            edges = [float(f"{edge:.6g}") for edge in np.linspace(low, high, BINS + 1)]
            found[name] = {"edges": edges, "counts": table[1:].tolist()}
    return found


def _table(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """The bits of the smallest and the largest value, then the rows' counts; int32 (1 + R, 32)."""
    pieces = [[piece for x in row for piece in _pieces(x)] for row in rows]
    flat = [piece for row in pieces for piece in row]
    low = torch.stack([_finite(piece, math.inf).amin() for piece in flat]).amin()
    high = torch.stack([_finite(piece, -math.inf).amax() for piece in flat]).amax()
    wide = high / 2 - low / 2 > _NARROWEST
    high = torch.where(wide, high, low + (low.abs() * 2**-20).clamp(min=1e-6))
    counts = [torch.stack([_counts(piece, low, high) for piece in row]).sum(0) for row in pieces]
    ends = torch.nn.functional.pad(torch.stack([low, high]).view(torch.int32), (0, BINS - 2))
    return torch.stack([ends, *(row.int() for row in counts)])


def _pieces(x: Tensor) -> Sequence[Tensor]:
    """The values as float32; on a CPU in pieces, whose intermediate results stay in its caches."""
    flat = x.float().flatten()
    return torch.split(flat, _AT_ONCE) if x.device.type == "cpu" else [flat]


def _finite(x: Tensor, other: float) -> Tensor:
    """``x`` with ``other`` for what is not finite."""
    return x.nan_to_num(nan=other, posinf=other, neginf=other)


def _counts(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How many finite values of ``x`` (n) lie in each bin between the ends, int64 (32)."""
    # Halves, because the difference of two finite values may be infinite.
    # The largest value stays below 32 although three operations may round up by 2^-24.
    scale = BINS * (1 - 2**-21) / (high / 2 - low / 2)
    numbers = _finite((x / 2 - low / 2) * scale, BINS).to(torch.uint8)
    return _tally(numbers) if x.device.type == "cpu" else _tally_without_waiting(numbers)


def _tally(numbers: Tensor) -> Tensor:
    """How often each number of a bin occurs; on a GPU it waits to see how many bins there are."""
    return torch.bincount(numbers, minlength=BINS + 1)[:BINS]


def _tally_without_waiting(numbers: Tensor) -> Tensor:
    return torch.stack([(numbers == number).sum() for number in range(BINS)])
