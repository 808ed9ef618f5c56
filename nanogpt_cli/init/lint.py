"""Verdicts in words on an initialisation: what is fine, what is unusual, and what will not work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from nanogpt_cli.init.tensor_stats import KS_LIMIT, Z_LIMIT, ClassStats, TensorStats
from nanogpt_cli.schemes import Scheme
from nanogpt_cli.schemes.laws import LARGEST_NORMAL

OK, NOTE, WARN, FAIL = "ok", "note", "warn", "fail"
SEVERITIES = (OK, NOTE, WARN, FAIL)


@dataclass(frozen=True)
class Verdict:
    """One finding.

    Attributes:
        severity: one of ``SEVERITIES``.
        topic: a stable short name, for scripts.
        text: a sentence with the number and the reason.
        value: the number that was judged.
    """

    severity: str
    topic: str
    text: str
    value: float = math.nan


def worst(verdicts: Iterable[Verdict]) -> str:
    """The gravest severity among verdicts."""
    return max((v.severity for v in verdicts), key=SEVERITIES.index, default=OK)


def on_scheme(scheme: Scheme, classes: Iterable[ClassStats] = ()) -> list[Verdict]:
    """Judge what a scheme declares, and the measured classes if there are any."""
    found = []
    if scheme.mismatch:
        text = f"architecture mismatch: {scheme.name} was designed for {scheme.mismatch}"
        found.append(Verdict(WARN, "mismatch", text))
    for name, rule in scheme.rules.items():
        if rule.kind == "truncated" and rule.cut >= LARGEST_NORMAL:
            text = f"{name}: truncation at ±{rule.cut:g}σ has no effect"
            found.append(Verdict(WARN, "truncation", text, rule.cut))
    return found + on_laws(classes)


def on_laws(classes: Iterable[ClassStats]) -> list[Verdict]:
    """Compare measured matrices with their declared laws."""
    classes = list(classes)
    found = [verdict for c in classes for verdict in _faults(c)]
    checked = [c for c in classes if not math.isnan(c.expected_std)]
    if checked and not found:
        n = sum(len(c.tensors) for c in checked)
        found.append(Verdict(OK, "laws", f"all {n} tensors follow their laws"))
    return found


def _faults(c: ClassStats) -> Iterator[Verdict]:
    broken = [t for t in c.tensors if not t.finite]
    if broken:
        text = f"{_which(broken, c)}: values that are not finite numbers"
        yield Verdict(FAIL, "not-finite", text)
    off = [t for t in c.off if t.finite]
    if not off:
        return
    t = max(off, key=_distance)
    yield Verdict(FAIL, "law", f"{_which(off, c)}: {_why(t)}", t.std)


def _distance(t: TensorStats) -> float:
    return abs(t.z) if math.isfinite(t.z) else math.inf


def _which(off: list[TensorStats], c: ClassStats) -> str:
    if len(off) == 1:
        return off[0].key
    if len(off) == len(c.tensors):
        return f"{c.tensor_class} (all {len(off)})"
    layers = [t.layer for t in off if t.layer >= 0]
    apart = all(b - a == 1 for a, b in pairwise(layers))
    return f"{c.tensor_class} (" + (
        f"blocks {layers[0]}-{layers[-1]})" if apart and layers else f"{len(off)} tensors)"
    )


def _why(t: TensorStats) -> str:
    """The way in which a tensor disagrees with its law."""
    assert t.law is not None
    if t.constant:
        return f"constant {t.minimum:g}, expected {t.law}"
    if t.law.kind == "constant":
        return f"std {t.std:.3g}, expected the constant {t.law}"
    ratio = t.std / t.expected_std
    if t.law.kind == "truncated" and t.exceeds(t.law):
        reach = t.reach / t.law.scale
        return f"values reach {reach:.1f}σ, but the law is cut at ±{t.law.cut:g}σ"
    if abs(t.z) >= Z_LIMIT:
        return f"std {t.std:.4g} is {ratio:.3f} times the expected {t.expected_std:.4g} ({t.law})"
    if t.ks_scaled >= KS_LIMIT:
        return f"not {t.law}: Kolmogorov-Smirnov distance {t.ks:.4f}, kurtosis {t.kurtosis:.2f}"
    return f"mean {t.mean:.3g}, expected 0"
