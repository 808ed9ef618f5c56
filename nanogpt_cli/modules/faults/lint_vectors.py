"""Gains and biases of a start: constants, but for torch's default of a bias."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from nanogpt_cli.init.lint import FAIL, NOTE, WARN
from nanogpt_cli.modules.anatomy import MATRICES
from nanogpt_cli.modules.faults.finding import Finding, spans
from nanogpt_cli.modules.faults.sketch import Sketch


def on_vectors(sketches: list[Sketch], plain_gains: frozenset[str]) -> Iterator[Finding]:
    """Judge gains and biases of weights that are a start; ``plain_gains`` as of ``lint.lint``."""
    gains = [s for s in sketches if s.part.role in ("norm", "qk_norm") and not s.broken]
    biases = [s for s in sketches if s.part.role == "bias" and not s.broken]
    for s in gains:
        yield from _gain(s, gains, plain=s.key in plain_gains)
    known = (*MATRICES, "lm_head")
    matrices = {_owner(s): s for s in sketches if s.part.role in known and not s.broken}
    norms = {_owner(s) for s in gains}
    untouched = [_is_default(m) for m in matrices.values() if m.std > 0]
    default = sum(untouched) > len(untouched) / 2
    for s in biases:
        # What else is called a bias, such as the step sizes of Mamba, may start anywhere.
        if _owner(s) in matrices or _owner(s) in norms:
            yield from _bias(s, matrices.get(_owner(s)), default=default)


def _owner(s: Sketch) -> str:
    """The module that holds a parameter."""
    return s.part.parameter.rpartition(".")[0]


def _gain(s: Sketch, gains: list[Sketch], *, plain: bool) -> Iterator[Finding]:
    square = s.column_square
    odd = torch.nonzero(square != square.median()).flatten().tolist()
    if 0 < len(odd) < s.size / 4:
        end = s.high if s.high - s.mean > s.mean - s.low else s.low
        what = f"{len(odd):,} of {s.size:,} channels ({spans(odd)}) are unlike the rest of this "
        what += f"gain, the furthest {end:.3g}"
        yield Finding(WARN, "gain", s.part, what, "a norm's gain starts at 1", end)
    elif not s.constant:
        what = f"this gain has mean {s.mean:.3g} and std {s.std:.3g}"
        advice = "drawn as if it were a matrix; a norm's gain starts at 1"
        yield Finding(WARN, "gain-drawn", s.part, what, advice, s.std)
    elif s.low == 0:
        # Gemma's norms multiply with 1 + gain, all of which start at zero.
        ones = [g for g in gains if g.part.role == s.part.role and g.constant and g.low != 0]
        if ones or plain:
            what = "this gain is zero, but others are not" if ones else "this gain is zero"
            advice = "nothing passes the norm; a gain starts at 1"
            yield Finding(FAIL, "gain", s.part, what, advice, 0.0)
    elif s.low != 1:
        what = f"this gain is {s.low:g} throughout"
        yield Finding(WARN, "gain", s.part, what, "a norm's gain starts at 1", s.low)


def _is_default(s: Sketch) -> bool:
    """Whether a matrix has torch's default law, uniform within ±1/√fan_in."""
    return s.uniform and abs(math.log(s.std * math.sqrt(3 * s.shape[1]))) < 0.03 + 6 / s.size**0.5


def _bias(s: Sketch, matrix: Sketch | None, *, default: bool) -> Iterator[Finding]:
    """A bias starts at zero, or uniform within ±1/√fan_in where nobody set it.

    Args:
        s: the bias.
        matrix: the matrix it belongs to; ``None`` for a norm's.
        default: whether most matrices have torch's default law.
    """
    if s.zero:
        return
    bound = 1 / math.sqrt(matrix.shape[1]) if matrix else 0.0
    if matrix is not None and not s.constant and s.reach <= bound and s.high > bound / 3:
        what = f"this bias is uniform within ±{bound:.3g}, torch's default"
        if default or matrix.uniform:  # as nn.Transformer, which draws its matrices alone
            yield Finding(NOTE, "bias", s.part, what, "most recipes start biases at zero", s.reach)
            return
        advice = "the matrices are not: it was not loaded or initialised; set it to zero"
        yield Finding(WARN, "torch-default", s.part, what, advice, s.reach)
        return
    what = f"this bias is {s.low:g} throughout" if s.constant else (
        f"this bias has mean {s.mean:.3g} and std {s.std:.3g}")  # fmt: skip
    if matrix is not None and matrix.part.role == "router":
        yield Finding(WARN, "bias", s.part, what, "it prefers some experts from the start", s.mean)
    else:
        yield Finding(WARN, "bias", s.part, what, "biases start at zero", s.mean)
