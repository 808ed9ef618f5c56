"""The law that the values of a matrix look like."""

from __future__ import annotations

import math

from nanogpt_cli.init.tensor_stats import TensorStats


def guess_law(t: TensorStats, n_layer: int) -> str:
    """Describe the law of a tensor in words, inferred from its moments and its range.

    An orthogonal matrix of gain g has norm g·√min(rows, columns) up to rounding; no other law
    reaches one of the usual gains (1, √2, √(2/L)) so exactly.
    """
    if not t.finite:
        return "not finite"
    if t.constant:
        return f"constant {t.minimum:g}"
    if t.size < 64:
        return f"std {t.std:.3g}"
    reach = max(-t.minimum, t.maximum) / t.std
    gain = math.hypot(t.std, t.mean) * math.sqrt(max(t.shape))
    usual = (1.0, math.sqrt(2), math.sqrt(2 / n_layer))
    if min(t.shape) > 1 and any(math.isclose(gain, g, rel_tol=1e-5) for g in usual):
        return f"orthogonal({gain:.4g})"
    if abs(t.kurtosis - 1.8) < 0.1 and reach < 1.8:
        return f"uniform({t.std:.4g})"
    cut = cut_of(reach)
    if cut is not None and t.kurtosis < 2.95:
        return f"truncated({t.std / cut[1]:.4g}, ±{cut[0]:g}σ)"
    if abs(t.kurtosis - 3) < 0.15 + 12 / math.sqrt(t.sampled) and reach < 6.5:
        return f"normal({t.std:.4g})"
    return f"no simple law (std {t.std:.3g}, kurtosis {t.kurtosis:.1f})"


def cut_of(reach: float) -> tuple[float, float] | None:
    """The cut whose largest value is ``reach`` standard deviations, and the law's std in σ."""
    for cut, true_std in ((2.0, 0.87963), (3.0, 0.98658)):
        if 0.97 * cut / true_std < reach <= cut / true_std * 1.01:
            return cut, true_std
    return None
