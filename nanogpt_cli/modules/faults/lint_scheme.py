"""The scheme of the catalogue that most of a module's matrices follow, and those that do not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from nanogpt_cli.init.lint import FAIL, NOTE, OK, WARN, Verdict
from nanogpt_cli.modules.faults.lint_values import TABLES
from nanogpt_cli.modules.faults.scales import CLOSE, PROJECTIONS, Shape, same, tolerance, typical
from nanogpt_cli.modules.faults.sketch import Sketch
from nanogpt_cli.schemes import Scheme, catalogue
from nanogpt_cli.schemes.laws import Law

# Configurations set the std of all matrices themselves: from 0.006 (DeepSeek) to 0.05 of 0.02.
MAX_FACTOR = 5.0
# Of a std that follows the width, Kaiming's √(2/d) is 2.2 times the smallest, that of ``gpt2-w``.
MAX_FACTOR_OF_WIDTH = 3.0
_UNKNOWN = "drawn by another law than the other roles"
# A table of so many times the scheme's std (its logarithm) has a scale of its own, by choice.
_OWN = math.log(2)
# Standard errors √(24/n) of the kurtosis of n normal values that chance does not exceed, and the
# smallest such n: at 4,096 values, skewness √(216/n) and excess 540/n of the estimate move a
# probability of 1e-9 from 6 to 8 of them (Cornish & Fisher). Laws without tails scatter less.
_KURTOSIS_ERRORS, _KURTOSIS_VALUES = 10.0, 4096


@dataclass(frozen=True)
class Fit:
    """A scheme, times a factor, beside the measured stds.

    Attributes:
        scheme: the scheme.
        factor: by which all its stds are multiplied; 1 unless another fits more roles.
        ratio: measured over expected std by role, with the factor applied.
        off: roles whose ratio is not 1.
    """

    scheme: Scheme
    factor: float
    ratio: dict[str, float]
    off: tuple[str, ...]

    @property
    def near(self) -> bool:
        """Whether most roles follow it, so that the others can be called different."""
        right = len(self.ratio) - len(self.off)
        return right >= 4 and len(self.off) <= 3 and right >= 2 * len(self.off)

    @property
    def name(self) -> str:
        """Its name, with the factor: ``gpt2 × 0.5``."""
        return self.scheme.name + (f" × {self.factor:.2g}" if self.factor != 1 else "")


def nearest(roles: dict[str, list[Sketch]], shape: Shape) -> Fit | None:
    """The scheme that most roles follow, if need be times one factor; ``None`` without roles."""
    alive = {role for role, group in roles.items() if any(s.std > 0 for s in group)}
    if len(alive) < 4:
        return None
    fits = [fit for scheme in catalogue().values() for fit in _fits(scheme, roles, shape)]
    return min(fits, key=lambda fit: (len(fit.off) + _unlikely(fit), _miss(fit)))


def _unlikely(fit: Fit) -> float:
    """How many roles more another scheme may miss before this one is preferred to it."""
    return 0.5 * (fit.factor != 1) + 1.5 * _mistaken(fit.scheme)


def _mistaken(scheme: Scheme) -> bool:
    """Whether the catalogue has the scheme because it is often drawn by mistake."""
    return any(word in scheme.about + scheme.source for word in ("misreading", "mistake"))


def _miss(fit: Fit) -> float:
    logs = [min(3.0, abs(math.log(r))) if r > 0 else 3.0 for r in fit.ratio.values()]
    # Some schemes are multiples of one another: the one with the factor nearest to 1 is meant.
    return sum(logs) / len(logs) + 0.02 * abs(math.log(fit.factor))


def _fits(scheme: Scheme, roles: dict[str, list[Sketch]], shape: Shape) -> Iterator[Fit]:
    ratio: dict[str, float] = {}
    beyond = total = unlike = inner = 0
    for role, group in roles.items():
        found = []
        for s in group:
            law = _law(scheme, s, shape)
            std = law.true_std(*s.shape)
            beyond += law.kind == "truncated" and s.reach > 1.2 * law.cut * s.std
            total += 1
            if s.part.layer >= 0 and s.std > 0 and std > 0:
                unlike += s.orthogonal != (law.kind == "orthogonal")
                inner += 1
            if s.std > 0 or std == 0:
                found.append(1.0 if s.std == std == 0 else s.std / std if std > 0 else math.inf)
        ratio[role] = median(found) if found else 0.0
    if beyond > total / 2 or unlike > inner / 2:
        return  # a law that is cut has no such values, and one that is orthogonal has equal norms
    off = _off_roles(ratio, roles)
    yield Fit(scheme, 1.0, ratio, off)
    finite = [r for role, r in ratio.items() if 0 < r < math.inf and typical(roles[role]) > 0]
    factor = median(finite) if finite else 1.0
    if off and abs(math.log(factor)) > 2 * CLOSE:
        scaled = {k: r / factor if typical(roles[k]) > 0 else r for k, r in ratio.items()}
        yield Fit(scheme, factor, scaled, _off_roles(scaled, roles))


def _law(scheme: Scheme, s: Sketch, shape: Shape) -> Law:
    """What a scheme prescribes for a matrix; a gate is drawn like ``fc``."""
    return scheme.law("fc" if s.part.role == "gate" else s.part.role, shape.values(s))


def _off_roles(ratio: dict[str, float], roles: dict[str, list[Sketch]]) -> tuple[str, ...]:
    def off(role: str, r: float) -> bool:
        room = math.hypot(CLOSE, tolerance(roles[role]))
        return not (0 < r < math.inf) or abs(math.log(r)) > room

    return tuple(role for role, r in ratio.items() if off(role, r))


def on_fit(
    fit: Fit | None,
    roles: dict[str, list[Sketch]],
    shape: Shape,
    *,
    skip: set[str],
    fused: int,
) -> Iterator[Verdict]:
    """Judge roles by the nearest scheme.

    Args:
        fit: that scheme, if there are matrices enough to tell.
        roles: matrices by role.
        shape: sizes of the module.
        skip: roles whose std another verdict explains.
        fused: see ``lint_laws.on_laws``.
    """
    if fit is None:
        return
    if not fit.near:
        text = f"no scheme is near (closest: {fit.name}): the laws are not judged"
        yield Verdict(NOTE, "nearest", text)
        return
    about = f"nearest scheme: {fit.name} ({fit.scheme.about})"
    yield Verdict(OK, "nearest", about, fit.factor)
    wide = re.search(r"\b(d|fan_in|fan_out)\b", fit.scheme.rules["q"].formula)
    if not 1 / MAX_FACTOR < fit.factor < (MAX_FACTOR_OF_WIDTH if wide else MAX_FACTOR):
        text = f"every matrix is {fit.factor:.3g} times as large as {fit.scheme.name} has it"
        yield Verdict(WARN, "scale", f"{text}: is a unit or a factor wrong?", fit.factor)
    if not skip.issuperset(PROJECTIONS):
        yield from _remarks(fit, shape)
    for role in fit.off:
        r = fit.ratio[role]
        if role in skip or not 0 < r < math.inf or typical(roles[role]) == 0:
            continue
        std = typical(roles[role])
        topic, why = _cause(role, roles[role], r, shape, fused)
        choice = _choice(fit, role, roles[role], r, shape)
        severity = (
            NOTE
            if choice or (role in TABLES and why == _UNKNOWN and abs(math.log(r)) > _OWN)
            else WARN
        )
        text = (
            f"{role}: std {std:.3g} is {r:.3g} times the {std / r:.3g} of {fit.name} "
            f"({roles[role][0].key}): {choice or why}"
        )
        if role == "wte" and shape.tied and std > 0.5:
            severity = FAIL
            text += "; it is tied to the head, and so large a head copies its input"
        yield Verdict(severity, topic, text, r)
    yield from _off_shape(fit, roles, shape)


def _off_shape(fit: Fit, roles: dict[str, list[Sketch]], shape: Shape) -> Iterator[Verdict]:
    """Roles with the std of their law, but another distribution than it and the other roles."""
    odd: list[tuple[str, float, Law]] = []
    followed = [role for role in fit.ratio if role not in fit.off and typical(roles[role]) > 0]
    for role in followed:
        group = [s for s in roles[role] if s.std > 0]
        law = _law(fit.scheme, group[0], shape)
        n = min(s.samples for s in group)
        kurtosis = median(s.kurtosis for s in group)
        scatter = 0.05 + _KURTOSIS_ERRORS * math.sqrt(24 / n)
        few = any(s.grid == "int8" for s in group)  # levels, which are another finding
        if law.kind == "orthogonal" or n < _KURTOSIS_VALUES or few:
            continue
        if abs(kurtosis - law.kurtosis) > scatter:
            odd.append((role, kurtosis, law))
    if len(odd) > len(followed) / 3:
        return  # a law of their own, which the scheme's std does not make wrong
    for role, kurtosis, law in odd:
        text = (
            f"{role}: kurtosis {kurtosis:.2f}, but {fit.name}'s {law.kind} law has "
            f"{law.kurtosis:.2f} ({roles[role][0].key}): drawn by another law than the other roles"
        )
        yield Verdict(WARN, "law", text, kurtosis)


def _remarks(fit: Fit, shape: Shape) -> Iterator[Verdict]:
    """Schemes that are often not what was meant."""
    name = fit.scheme.name
    if name == "xavier-fused":
        text = "q, k, v have Xavier's std of the fused matrix, 0.71 times that of separate ones"
        yield Verdict(WARN, "fused-xavier", f"{text}: draw each by itself", 0.71)
    elif name == "scaled-1L" and shape.L > 1:
        text = "residual projections have 1/√L, √2 times GPT-2's 1/√(2L): a layer adds two branches"
        yield Verdict(NOTE, "depth-factor", text, math.sqrt(2))
    elif name == "normal" and shape.L > 2:
        text = f"residual projections have the plain std: no depth scaling over {shape.L} layers"
        yield Verdict(NOTE, "plain-projections", text, 1.0)
    elif _mistaken(fit.scheme):
        text = f"{fit.scheme.about} ({fit.scheme.source}): is that what was meant?"
        yield Verdict(NOTE, "depth-factor", text)


def _choice(fit: Fit, role: str, group: list[Sketch], r: float, shape: Shape) -> str:
    """Why a std that is not the scheme's is a choice and no mistake; empty if nothing tells."""
    s, std, near = group[0], typical(group), CLOSE + tolerance(group)
    fan_in = s.shape[1]
    if fit.scheme.name.startswith("pytorch") and role in ("q", "k", "v"):
        if same(std, math.sqrt(2 / (4 * fan_in)), near):
            return "torch's own default for nn.MultiheadAttention, Xavier's law of the fused matrix"
    elif role == "lm_head":
        law = fit.scheme.law("q", shape.values(s))
        if same(std, fit.factor * law.true_std(*s.shape), near):
            return "the head is drawn as the matrices of the blocks are"
    elif role not in TABLES and fan_in != shape.d and same(r, math.sqrt(shape.d / fan_in), near):
        return "it follows its fan-in, where the scheme follows the width"
    return ""


def _cause(
    role: str, group: list[Sketch], r: float, shape: Shape, fused: int
) -> tuple[str, str]:  # fmt: skip
    """Topic and likely cause of a std that is ``r`` times the expected one."""
    s, std, near = group[0], typical(group), CLOSE + tolerance(group)
    fan_out, fan_in = s.shape
    depth = math.sqrt(2 * shape.L)
    uniform = sum(x.uniform for x in group) > len(group) / 2
    if uniform and same(std, 1 / math.sqrt(3 * fan_in), near):
        return "torch-default", "torch's default for nn.Linear: not loaded, or not initialised"
    if role in TABLES and same(std, 1.0, near):
        return "torch-default", "torch's default for nn.Embedding: not loaded, or not initialised"
    if uniform and same(r, 1 / math.sqrt(3), near):
        return "uniform-bound", "uniform within ± the std that was meant; multiply the bound by √3"
    if all(x.orthogonal for x in group):  # its std is 1/√fan_out or 1/√fan_in of necessity
        gain = std * math.sqrt(max(fan_in, fan_out))
        return "law", f"orthogonal with gain {gain:.3g}, unlike the other matrices"
    known = [
        (r, math.sqrt(shape.d) if role in TABLES else math.nan, "scaled", "multiplied by √d"),
        (std, math.sqrt(2 / fan_in), "law", "Kaiming's law √(2/fan_in)"),
    ]
    if role in PROJECTIONS:
        known[:0] = [
            (r, depth, "depth-factor", "the depth factor 1/√(2L) is missing"),
            (r, 1 / depth, "depth-factor", "the depth factor 1/√(2L) is applied twice"),
            (r, math.sqrt(2), "depth-factor", "1/√L, not 1/√(2L): a layer adds two branches"),
            (r, 1 / math.sqrt(2), "depth-factor", "the depth factor counts 2L branches twice"),
        ]  # fmt: skip
    elif role not in TABLES:
        known[:0] = [(r, 1 / depth, "wrong-matrix", "it has the depth factor 1/√(2L), which "
                      "belongs on the residual projections")]  # fmt: skip
    known += [
        (std, math.sqrt(2 / (fan_in + fused * fan_out)), "law", "Xavier's law of a fused matrix"),
        (std, 1 / math.sqrt(fan_out) if fan_in != fan_out else math.nan, "fan",
         "1/√fan_out in place of 1/√fan_in: is it transposed?"),
        (std, math.sqrt(2 / fan_out) if fan_in != fan_out else math.nan, "fan",
         "√(2/fan_out) in place of √(2/fan_in): is it transposed?"),
        (std, math.sqrt(2 / (fan_in + fan_out)), "law", "Xavier's law"),
        (r, 2.0, "law", "doubled"),
    ]  # fmt: skip
    if role not in TABLES:  # whose stds are often chosen, also ones such as these
        known += [
            (std, (std / r) ** 2, "law", "its square: a variance in place of a std"),
            (std, math.sqrt(std / r), "law", "its root: the std was taken for a variance"),
        ]
    for found, value, topic, why in known:
        if same(found, value, near):
            return topic, why
    if role in ("q", "k") and r > 1.5:
        return "hot", "attention starts sharper than the other matrices suggest"
    return "law", _UNKNOWN
