"""Infer how foreign weights were initialised: their laws, the nearest scheme, likely mistakes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

from nanogpt_cli.init.drawing import MatrixSpec
from nanogpt_cli.init.lint import FAIL, NOTE, OK, WARN, Verdict
from nanogpt_cli.init.lint_signals import on_signals, on_trained
from nanogpt_cli.init.nearest import MATRICES, TABLES, Match, declared, nearest_scheme
from nanogpt_cli.init.signals import Signals
from nanogpt_cli.init.tensor_stats import ClassStats, TensorStats, by_class
from nanogpt_cli.model.gpt import GPTConfig

_CLOSE = 0.03  # a class whose std is this close (3 %) agrees with the scheme


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
    cut = _cut(reach)
    if cut is not None and t.kurtosis < 2.95:
        return f"truncated({t.std / cut[1]:.4g}, ±{cut[0]:g}σ)"
    if abs(t.kurtosis - 3) < 0.15 + 12 / math.sqrt(t.sampled) and reach < 6.5:
        return f"normal({t.std:.4g})"
    return f"no simple law (std {t.std:.3g}, kurtosis {t.kurtosis:.1f})"


def _cut(reach: float) -> tuple[float, float] | None:
    """The cut whose largest value is ``reach`` standard deviations, and the law's std in σ."""
    for cut, true_std in ((2.0, 0.87963), (3.0, 0.98658)):
        if 0.97 * cut / true_std < reach <= cut / true_std * 1.01:
            return cut, true_std
    return None


def judge(
    tensors: list[TensorStats], signals: Signals, config: GPTConfig, *, trained: bool = False
) -> list[Verdict]:
    """Judge weights without a known scheme: as a start, or as a trained model.

    Args:
        tensors: statistics of every matrix.
        signals: signals measured with these weights.
        config: their model.
        trained: whether they are known to be trained; else LayerNorm gains tell, which every scheme
            starts from a constant.
    """
    gains = [t for t in tensors if t.tensor_class == "ln" and t.finite and not t.constant]
    if not (trained or any(not _drawn(t) for t in gains)):
        return lint_foreign(tensors, config) + on_signals(signals, config)
    text = "these weights are trained: limits that a start should keep are not applied"
    damage = [v for v in _dead_tensors(tensors) if v.severity == FAIL]
    return [Verdict(NOTE, "trained", text), *damage, *on_trained(signals)]


def _drawn(gain: TensorStats) -> bool:
    """Whether a gain has mean zero, within six standard errors, which training does not give it."""
    return abs(gain.mean) < 6 * gain.std / math.sqrt(gain.size)


def lint_foreign(tensors: list[TensorStats], config: GPTConfig) -> list[Verdict]:
    """Find faults that are visible in the weights alone, and name the nearest scheme."""
    classes = {c.tensor_class: c for c in by_class(tensors)}
    match = nearest_scheme(tensors, config)
    expected = declared(tensors, match.scheme, config, match.factor)
    found = [*_dead_tensors(tensors), *_zeros(classes, tensors, expected), *_outliers(classes)]
    found += [*_fused_xavier(classes, config), *_projections(classes, config)]
    found += [*_embeddings(classes, config), *_uncut(classes)]
    if not match.near:
        text = (
            f"no scheme is near (closest: {match.scheme.name}): "
            "the weights are trained or follow an unknown scheme"
        )
        return [Verdict(NOTE, "nearest", text, match.distance), *found]
    laws = [replace(t, expected_std=p.std) for t, p in zip(tensors, expected, strict=True)]
    off = [*_apart(by_class(laws), match.name), *_off_law(tensors, expected, match)]
    text = f"nearest scheme: {match.name}"
    return [Verdict(OK, "nearest", text, match.distance), *off, *found]


def _apart(classes: list[ClassStats], scheme: str) -> Iterator[Verdict]:
    """Classes whose std differs from that of the nearest scheme."""
    for c in classes:
        if c.tensor_class not in (*MATRICES, *TABLES):
            continue
        expected, std = c.expected_std, c.std
        noise = 4 / math.sqrt(2 * c.size)
        if expected == 0 or std == 0:
            continue
        if abs(math.log(std / expected)) > _CLOSE + noise:
            text = (
                f"{c.tensor_class}: std {std:.4g} is {std / expected:.3g} times "
                f"{scheme}'s {expected:.4g}"
            )
            yield Verdict(WARN, "differs", text, std / expected)


def _off_law(
    tensors: list[TensorStats], expected: list[MatrixSpec], match: Match
) -> Iterator[Verdict]:
    """Classes with matrices whose mean or shape is not that of the scheme's law."""
    seen = set()
    for t, spec in zip(tensors, expected, strict=True):
        law = spec.law
        if t.tensor_class in seen or not t.finite or t.std == 0 or law.kind == "constant":
            continue
        # √(24/n) is the standard error of a normal sample's kurtosis, and larger than other laws'.
        scatter = 0.05 + 6 * math.sqrt(24 / max(1, t.sampled))
        text = ""
        if abs(t.mean) > 6 * t.std / math.sqrt(t.size):
            text = f"{t.key}: mean {t.mean:.3g}, but the mean of {match.name}'s {law.kind} law is 0"
        elif law.kind != "orthogonal" and abs(t.kurtosis - law.kurtosis) > scatter:
            text = f"{t.key}: kurtosis {t.kurtosis:.2f}, but {match.name}'s {law.kind} law has "
            text += f"{law.kurtosis:.2f}"
        if text:
            seen.add(t.tensor_class)
            yield Verdict(WARN, "law", text, t.kurtosis)


def _dead_tensors(tensors: list[TensorStats]) -> Iterator[Verdict]:
    """Values that are not finite or implausibly large or small, and constant gains other than 1."""
    for t in tensors:
        if not t.finite:
            text = f"{t.key}: values that are not finite numbers"
            yield Verdict(FAIL, "not-finite", text)
        elif t.reach > 1e3 or (t.reach < 1e-12 and not t.constant):
            text = f"{t.key} reaches {t.reach:.2g}: uninitialised memory?"
            yield Verdict(FAIL, "uninitialised", text, t.reach)
        elif t.tensor_class == "ln" and not t.constant and _drawn(t):
            text = (
                f"{t.key} has mean {t.mean:.2g} and std {t.std:.2g}: a LayerNorm gain starts at 1"
            )
            yield Verdict(WARN, "gain", text, t.std)
        elif t.tensor_class == "ln" and t.constant and t.minimum not in (0, 1):
            text = f"{t.key} is {t.minimum:g} throughout, but a LayerNorm gain should start at 1"
            yield Verdict(WARN, "gain", text, t.minimum)


def _zeros(
    classes: dict[str, ClassStats], tensors: list[TensorStats], expected: list[MatrixSpec]
) -> Iterator[Verdict]:
    """Zeros where no scheme has any, where the nearest scheme has none, or in one block only."""
    for t, spec in zip(tensors, expected, strict=True):
        if not (t.constant and t.minimum == 0):
            continue
        never = t.tensor_class in ("q", "k", "v", "fc", "wte", "lm_head", "ln")
        alone = any(other.std > 0 for other in classes[t.tensor_class].tensors)
        table = t.tensor_class == "wpe" and spec.std > 0
        if never or table or (alone and t.tensor_class in MATRICES):
            yield Verdict(FAIL, "zero", f"{t.key} is zero: left uninitialised?")


def _outliers(classes: dict[str, ClassStats]) -> Iterator[Verdict]:
    """Blocks whose matrix deviates from the smooth trend of its class over depth."""
    for name in MATRICES:
        c = classes.get(name)
        stds = [t.std for t in c.tensors] if c else []
        if c is None or len(stds) < 4 or min(stds) <= 0:
            continue
        for i, t in enumerate(c.tensors):
            near = [stds[j] for j in range(max(0, i - 2), min(len(stds), i + 3)) if j != i]
            middle = sorted(near)[len(near) // 2]
            if 0 < i < len(stds) - 1 and not 0.66 < t.std / middle < 1.5:
                text = f"{t.key}: std {t.std:.3g}, but {middle:.3g} in the neighbouring blocks"
                yield Verdict(WARN, "outlier", text, t.std / middle)


def _same(a: float, b: float, tolerance: float = 0.03) -> bool:
    return b > 0 and abs(a / b - 1) < tolerance


def _fused_xavier(classes: dict[str, ClassStats], config: GPTConfig) -> Iterator[Verdict]:
    fused = math.sqrt(2 / (4 * config.n_embd))
    proper = 1 / math.sqrt(config.n_embd)
    names: tuple[str, ...] = ("q", "k", "v", "attn_proj")
    std = {name: classes[name].std for name in names if name in classes}
    if len(std) < 4 or not _same(std["attn_proj"], proper):
        return
    if all(_same(std[name], fused) for name in "qkv"):
        text = (
            f"q, k, v have std {fused:.4g} = √(2/4d): Xavier was applied to the fused c_attn "
            f"matrix; separate matrices would have {proper:.4g}"
        )
        yield Verdict(WARN, "fused-xavier", text, fused)


def _typical(c: ClassStats) -> float:
    """The median std of a class, which one faulty matrix does not change."""
    return median(t.std for t in c.tensors)


def _projections(classes: dict[str, ClassStats], config: GPTConfig) -> Iterator[Verdict]:
    """Depth scaling that is missing or applied to the wrong matrix."""
    if not all(c in classes for c in MATRICES) or config.n_layer < 3:
        return
    if config.multipliers.residual != 1:  # the branches are scaled outside their matrices
        return
    std = {name: _typical(classes[name]) for name in MATRICES}
    factor = 1 / math.sqrt(2 * config.n_layer)
    proj = (std["attn_proj"], std["mlp_proj"])
    for name in ("q", "k", "v", "fc"):
        others = [std[c] for c in ("q", "k", "v", "fc") if c != name]
        plain = max(others)
        if _same(std[name], plain * factor) and any(_same(p, plain) for p in proj):
            text = f"the depth factor 1/√(2L) is on {name}, not on the residual projections"
            yield Verdict(WARN, "wrong-matrix", text, std[name])
    if all(_same(s, std["fc"]) for s in std.values()) and _same(std["fc"], 0.02, 0.1):
        text = f"the residual projections have the plain std {std['fc']:.3g}: no depth scaling "
        text += f"over {config.n_layer} layers"
        yield Verdict(WARN, "plain-projections", text, std["attn_proj"])
    for name, other in (("attn_proj", "mlp_proj"), ("mlp_proj", "attn_proj")):
        if _same(std[name], std["fc"]) and _same(std[other], std["fc"] * factor):
            text = (
                f"{name} has the plain std {std[name]:.3g}: only {other} has the depth factor "
                "1/√(2L)"
            )
            yield Verdict(WARN, "half-scaled", text, std[name])


def _uncut(classes: dict[str, ClassStats]) -> Iterator[Verdict]:
    """A matrix with values beyond the cut that another one of the same scale respects.

    torch's trunc_normal_ takes absolute bounds: its default of ±2 is 100σ at std 0.02.
    """
    first = {name: c.tensors[0] for name, c in classes.items() if name in (*MATRICES, *TABLES)}
    kept: list[tuple[float, float, str]] = []
    for name, t in first.items():
        # Fewer normal values could all lie within 3σ by chance.
        near = _cut(t.reach / t.std) if t.finite and t.std > 0 and t.size > 20_000 else None
        if near is not None and t.kurtosis < 2.95:
            kept.append((near[0], t.std / near[1], name))
    for name, t in first.items():
        for cut, sigma, other in kept:
            if t.reach > cut * sigma * 1.1 and _same(t.std, sigma):
                text = f"{name} reaches {t.reach / sigma:.1f}σ, but {other} is cut at ±{cut:g}σ: "
                text += "its bounds have no effect"
                yield Verdict(WARN, "truncation", text, t.reach / sigma)
                break


def _embeddings(classes: dict[str, ClassStats], config: GPTConfig) -> Iterator[Verdict]:
    c = classes.get("wte")
    if c is not None and config.tied and c.std > 0.5:
        text = f"the token embedding has std {c.std:.3g} and is tied to the head"
        yield Verdict(FAIL, "tied-embedding", text, c.std)
