"""Faults of a module's start that are visible in its weights, for any architecture.

A start is independent random numbers, so every figure of it has a known scatter: what is judged
here is compared with the chance of it (``chance.py``), not with what was seen before. Trained
weights are judged for damage alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from torch import Tensor

from nanogpt_cli.init.lint import FAIL, NOTE, OK, Verdict
from nanogpt_cli.modules.anatomy import MATRICES, Part
from nanogpt_cli.modules.faults import lint_laws, lint_pairs, lint_scheme, lint_values, lint_vectors
from nanogpt_cli.modules.faults.finding import Finding, merged
from nanogpt_cli.modules.faults.scales import Shape, by_role
from nanogpt_cli.modules.faults.sketch import Sketch, sketch

_MATRICES = (*MATRICES, *lint_values.TABLES)
# Of the matrices. No fault but training makes so many uneven, and 50 steps of AdamW make as many.
_UNEVEN = 0.2


def sketches_of(parts: Iterable[tuple[Part, Tensor]]) -> list[Sketch]:
    """Sketches of parts that arrive one at a time with their values, (out, in) or (size,)."""
    return [sketch(part, values) for part, values in parts]


def lint(
    sketches: list[Sketch],
    *,
    tied: bool,
    trained: bool | None = None,
    depth: int = 0,
    plain_gains: frozenset[str] = frozenset(),
) -> list[Verdict]:
    """Judge the weights of a module.

    Args:
        sketches: one for each part; parts of one tensor that is used twice may come once or twice.
        tied: whether head and token embedding are one tensor.
        trained: whether the weights are known to be trained, or known to be a start; ``None`` to
            find out from the weights.
        depth: how many blocks run one after another, where that is known; some modules run the
            same block several times.
        plain_gains: the keys of gains known to be multiplied with as they are, not as 1 + gain.

    Returns:
        Findings in the order of their severity; one of topic ``weights`` says what was judged.
    """
    if tied:
        sketches = [s for s in sketches if s.part.role != "lm_head"]
    by_design = [s for s in sketches if s.placed]  # nothing of them was left to chance
    sketches = [s for s in sketches if not s.placed]
    start = not (looks_trained(sketches) if trained is None else trained)
    found: list[Finding] = []
    for s in sketches:
        found += lint_values.broken(s)
    ill = {f.part.key for f in found}
    sound = [s for s in sketches if s.key not in ill and s.size]
    matrices = [s for s in sound if s.part.role in _MATRICES and not s.vector]
    for s in matrices:
        found += lint_values.damage(s)
    verdicts = lint_pairs.on_pairs(matrices, tied=tied, start=start)
    if start:
        found, more = _as_start(
            sound, matrices, found, _shape(matrices, tied=tied, depth=depth), plain_gains
        )
        verdicts += more
    else:
        zero = {s.part.role for s in matrices if s.zero}
        verdicts += lint_laws.on_zeros(matrices) if zero else []
    verdicts += lint_values.stored_in(matrices)
    found += lint_values.cast(matrices)
    if by_design:
        verdicts.append(Verdict(OK, "positions", _PLACED, float(len(by_design))))
    verdicts = _summary(verdicts + merged(found), len(sketches), start=start)
    return sorted(verdicts, key=lambda v: -_ORDER.index(v.severity))


_PLACED = (
    "positions begin as sinusoids, or queries and keys as their comparison, by design: such "
    "matrices (scheme lookback) are not judged as draws"
)
_ORDER = (OK, NOTE, "warn", FAIL)


def _as_start(
    sound: list[Sketch],
    matrices: list[Sketch],
    found: list[Finding],
    shape: Shape,
    plain_gains: frozenset[str],
) -> tuple[list[Finding], list[Verdict]]:
    """What independent draws of one law a role do not show."""
    tests = sum(sum(s.shape) for s in matrices)
    ill = {f.part.key for f in found}
    for s in matrices:
        if s.std > 0 and s.key not in ill:
            found += lint_values.odd(s, tests)
    found += lint_vectors.on_vectors(sound, plain_gains)
    # A matrix with empty or odd lines has another std than the law that drew the rest.
    ill = {f.part.key for f in found if f.topic in lint_values.CHANGES_STD}
    even = [s for s in matrices if s.key not in ill]
    verdicts = list(lint_pairs.fused_orthogonal(even))
    return found, verdicts + list(lint_laws.on_laws(even, shape))


def nearest_scheme(sketches: list[Sketch], *, tied: bool, depth: int = 0) -> str:
    """The scheme that the weights of a start follow, as ``gpt2`` or ``gpt2 × 0.5``; empty if none.

    Args:
        sketches: those of all parts of the module.
        tied: whether head and token embedding are one tensor.
        depth: see ``lint``.
    """
    matrices = [s for s in sketches if s.part.role in _MATRICES and not s.vector and not s.broken]
    if tied:
        matrices = [s for s in matrices if s.part.role != "lm_head"]
    fit = lint_scheme.nearest(by_role(matrices), _shape(matrices, tied=tied, depth=depth))
    return fit.name if fit and fit.near else ""


def _shape(matrices: list[Sketch], *, tied: bool, depth: int) -> Shape:
    tables = {s.part.role: s.shape for s in matrices if s.part.role in lint_values.TABLES}
    V, d = tables.get("wte", tables.get("lm_head", (0, 0)))
    if not d:
        d = int(median([s.shape[1] for s in matrices])) if matrices else 1
    L = max(depth, 1 + max((s.part.layer for s in matrices), default=0))
    return Shape(d, max(1, L), V or d, tables.get("wpe", (d, d))[0], tied)


def looks_trained(sketches: list[Sketch]) -> bool:
    """Whether weights have been trained rather than drawn.

    Every optimizer moves gains and biases, each channel its own way, and in time gives matrices
    rows, columns and directions of unequal size. One gain or matrix may be a fault of a start, so
    half of the gains must have moved. Gains that lie around zero were drawn by mistake, or are
    Gemma's, which multiply with 1 + gain: then matrices must be uneven, or the gains still small.
    """
    gains = [s for s in sketches if s.part.role in ("norm", "qk_norm") and not s.broken]
    gains = [s for s in gains if s.size > 1]
    matrices = [s for s in sketches if s.part.role in _MATRICES and not s.broken]
    matrices = [s for s in matrices if s.std > 0 and not s.vector]
    if not matrices:
        return False
    uneven = sum(s.structured for s in matrices) / len(matrices)
    moved = [s for s in gains if not s.constant]
    if not gains:
        return uneven > _UNEVEN
    if len(moved) < len(gains) / 2:
        return False
    if sum(abs(s.mean) > 6 * s.std / math.sqrt(s.size) for s in moved) > len(moved) / 2:
        return True
    scale = median(s.std for s in matrices)
    return uneven > _UNEVEN or all(s.std < 0.3 * scale for s in moved)


def _summary(verdicts: list[Verdict], n: int, *, start: bool) -> list[Verdict]:
    """The verdicts, with one that says how they were judged, and what follows from a fault."""
    if not start:
        text = "these weights are trained: only damage is judged, not the laws of a start"
        return [Verdict(NOTE, "weights", text), *verdicts]
    if any(v.severity in ("warn", FAIL) for v in verdicts):
        return verdicts
    text = f"{n} tensors are independent draws, each of one law"
    return [Verdict(OK, "weights", text, float(n)), *verdicts]


def forward_mismatch(difference: float, reason: str = "") -> Verdict:
    """The verdict on a module whose forward is not the one that its weights were read as.

    Args:
        difference: largest difference of the logits, as a share of the largest logit.
        reason: what differs, if it is known, such as ``the activation is relu, not gelu``.
    """
    size = f"{difference:.2g}" if math.isfinite(difference) else "an infinite share"
    why = reason or "another activation, attention scale, norm or residual path"
    text = (
        f"the module's own logits differ by {size} of the largest from those of the model that its "
        f"weights were read as: {why}; theory does not hold for it"
    )
    return Verdict(FAIL, "forward", text, difference)
