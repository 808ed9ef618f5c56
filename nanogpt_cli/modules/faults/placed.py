"""Matrices that hold positions or compare them, by design and not by chance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nanogpt_cli.init import drawing
from nanogpt_cli.schemes import positions
from nanogpt_cli.schemes.laws import Law

# By role of the part. Queries may be turned or not, keys are as they are.
_KINDS = {"wpe": ("sinusoids",), "q": ("offsets", "positions"), "k": ("positions",)}
# Of the largest value. Weights may have been stored in bfloat16, which rounds each to 2⁻⁹ of itself
# and so the factor, which is taken from one of them.
_ROUNDING = 2.0**-7


def is_placed(role: str, values: Tensor) -> bool:
    """Whether a matrix is, up to a factor, one of ``schemes.positions``.

    Args:
        role: of the part.
        values: (out, in) float32, finite.
    """
    head = _head(role, values)
    first = float(values[0, 0]) if values.numel() else 0.0
    if not head or not first:
        return False
    for kind in _KINDS[role]:
        scale = first
        if kind == "sinusoids":
            scale *= math.sqrt(positions.channels(head) / (2 * values.shape[1]))
        known = drawing.placed(Law(kind, scale, head=head), (len(values), values.shape[1])).float()
        if torch.allclose(values, known, rtol=0.0, atol=abs(first) * _ROUNDING):
            return True
    return False


def _head(role: str, values: Tensor) -> int:
    """Channels of a head, if all but the first few columns are zero; else 0.

    Of a position table it is how many columns are not zero, which is all that matters there.
    """
    if role not in _KINDS or values.dim() < 2 or not bool(values[:, 0].any()):
        return 0
    # Of weights after a few steps, what moved by less than rounding would is still zero.
    tiny = float(values[0, 0].abs()) * _ROUNDING
    live = (values[: 4 * positions.MOST].abs() > tiny).any(0).nonzero().flatten().tolist()
    if live != list(range(len(live))) or not 1 <= len(live) <= positions.MOST:
        return 0
    if role == "wpe":
        return len(live)
    # Row D, the first of the second head, is the next that reads the first two columns.
    rows = (values[2:, :2].abs() > tiny).any(1).nonzero().flatten()
    return 2 + int(rows[0]) if len(rows) else len(values)


def is_grown(role: str, empty: Tensor, rows: int) -> bool:
    """Whether queries or keys may have begun as comparison of positions, and were trained since.

    Rows of a head beyond the first few are zero in both, and so get no gradient.

    Args:
        role: of the part.
        empty: indices of its rows that are zero.
        rows: how many it has.
    """
    if role not in ("q", "k") or not len(empty) or int(empty[0]) != positions.MOST:
        return False
    later = (empty[1:] != empty[:-1] + 1).nonzero().flatten()
    head = 1 + int(empty[later[0]]) if len(later) else rows
    number = torch.arange(rows)
    return rows % head == 0 and torch.equal(empty, number[number % head >= positions.MOST])
