"""Scales that disagree: over depth, between roles, with the nearest scheme; gains and biases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch

from nanogpt_cli.init.lint import FAIL, NOTE, OK, WARN, Verdict
from nanogpt_cli.modules import chance
from nanogpt_cli.modules.anatomy import MATRICES
from nanogpt_cli.modules.finding import blocks
from nanogpt_cli.modules.lint_values import TABLES
from nanogpt_cli.modules.sketch import Sketch
from nanogpt_cli.schemes import Scheme, catalogue

PROJECTIONS = ("attn_proj", "mlp_proj")
_JUDGED = (*TABLES, *(role for role in MATRICES if role != "router"))
_CLOSE = 0.03
# Configurations set the std of all matrices themselves: from 0.006 (DeepSeek) to 0.05 of 0.02.
_MAX_FACTOR = 5.0
# Scales of blocks 0, 1, … that known schemes use, and two that are mistakes.
_TRENDS = {"constant": 0.0, "1/√(l+1)": -0.5, "1/(l+1)": -1.0}


@dataclass(frozen=True)
class Shape:
    """What a scheme's formulas need to know: channels, layers, rows of the tables."""

    d: int
    L: int
    V: int
    T: int

    def values(self, s: Sketch) -> dict[str, float]:
        """The variables of ``schemes.laws`` for one matrix."""
        fans = {"fan_out": s.shape[0], "fan_in": s.shape[1], "l": max(0, s.part.layer)}
        return {"d": self.d, "L": self.L, "V": self.V, "T": self.T, "D": 64, **fans}


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


def by_role(sketches: list[Sketch]) -> dict[str, list[Sketch]]:
    """Judged matrices by role."""
    roles: dict[str, list[Sketch]] = {}
    for s in sketches:
        if s.part.role in _JUDGED and not s.broken and not s.vector:
            roles.setdefault(s.part.role, []).append(s)
    return roles


def on_laws(sketches: list[Sketch], shape: Shape, fused: int = 3) -> Iterator[Verdict]:
    """Judge the scales of a start.

    Args:
        sketches: those of the module.
        shape: its sizes.
        fused: how many (d, d) matrices a fused q, k, v parameter has, for Xavier's law on it.
    """
    roles = by_role(sketches)
    trends = [v for role, group in roles.items() for v in _over_depth(role, group, shape)]
    yield from trends
    odd_roles = {v.role for v in trends}
    yield from on_zeros(sketches)
    alive = {r: g for r, g in roles.items() if any(s.std > 0 for s in g)}
    half = list(_half_scaled(alive, shape))
    yield from half
    best = nearest(roles, shape)
    yield from _on_fit(best, roles, shape, skip=odd_roles | {v.role for v in half}, fused=fused)
    yield from _uniform_bound(alive)


def typical(group: list[Sketch]) -> float:
    """The median std of a role's matrices that are not zero, which one block does not change."""
    return median([s.std for s in group if s.std > 0] or [0.0])


@dataclass(frozen=True)
class RoleVerdict(Verdict):
    """A verdict about all matrices of one role."""

    role: str = ""


# --- over depth ---


def _over_depth(role: str, group: list[Sketch], shape: Shape) -> Iterator[RoleVerdict]:
    """A block out of its role's trend over depth, or a trend that no scheme has."""
    layers = _layers(group)
    if len(layers) < 3:
        return
    n = min(sum(s.size for s in found) for found in layers.values())
    index = torch.tensor(list(layers), dtype=torch.float64)
    square = torch.tensor(
        [sum(s.std**2 * s.size for s in g) / sum(s.size for s in g) for g in layers.values()],
        dtype=torch.float64,
    )
    off = {name: _off(square, (index + 1) ** (2 * power), n) for name, power in _TRENDS.items()}
    if not min(len(found) for found in off.values()):
        return
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
            yield RoleVerdict(WARN, "depth-order", f"{role}: its std is {why}", role=role)
            return
    name = min(off, key=lambda trend: len(off[trend]))
    odd = off[name]
    if len(odd) > max(1, len(layers) // 3):
        stds = ", ".join(f"{x:.3g}" for x in square.sqrt().tolist()[:6])
        text = (
            f"{role}: its std follows no trend over depth ({stds}, …): blocks drawn by other laws"
        )
        yield RoleVerdict(WARN, "depth-order", text, role=role)
        return
    yield _odd_blocks(role, layers, square, (index + 1) ** (2 * _TRENDS[name]), odd, shape)


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
) -> RoleVerdict:
    ratio = (square / trend).sqrt()
    ratio /= ratio.median()
    worst = max(odd, key=lambda i: abs(math.log(float(ratio[i]))))
    factor, names = float(ratio[worst]), list(layers)
    depth = math.sqrt(2 * shape.L)
    why = "drawn by another law, or scaled twice"
    if role in PROJECTIONS and _same(factor, depth):
        why = "the depth factor 1/√(2L) is missing there"
    elif role in PROJECTIONS and _same(factor, 1 / depth):
        why = "the depth factor 1/√(2L) is there alone"
    elif all(s.uniform for s in layers[names[worst]]):
        why = "uniform as torch's default: never loaded or initialised?"
    key = layers[names[worst]][0].key
    text = (
        f"{role} in {blocks(names[i] for i in odd)} is {factor:.3g} times as large as in the other "
        f"blocks ({key}, std {math.sqrt(float(square[worst])):.3g}): {why}"
    )
    return RoleVerdict(WARN, "odd-block", text, factor, role=role)


# --- between roles ---


def _same(a: float, b: float, tolerance: float = _CLOSE) -> bool:
    return a > 0 and b > 0 and abs(math.log(a / b)) < tolerance


def _tolerance(group: list[Sketch]) -> float:
    """How far chance moves the logarithm of a role's typical std: 6 standard errors."""
    return 6 / math.sqrt(2 * min(s.size for s in group))


def on_zeros(sketches: list[Sketch]) -> Iterator[Verdict]:
    """Matrices that are zero throughout."""
    roles = by_role(sketches)
    whole = {role for role, group in roles.items() if all(s.zero for s in group)}
    zero = {role: [s for s in group if s.zero] for role, group in roles.items()}
    dead = {s.part.layer for role in zero if role not in whole for s in zero[role]}
    for layer in sorted(dead - {-1}):
        here = [s for group in roles.values() for s in group if s.part.layer == layer]
        named = [s for s in here if s.zero and s.part.role not in whole]
        every = len([s for s in here if s.zero]) == len(here)
        what = "every matrix is" if every else f"{', '.join(s.key for s in named[:3])} is"
        text = f"block {layer}: {what} zero, but not in other blocks: never loaded or initialised"
        yield Verdict(FAIL, "zero", text, float(layer))
    for role in sorted(whole):
        if role in ("attn_proj", "mlp_proj"):
            text = f"{role} is zero in every block: its branch starts as nothing (zero-proj)"
            rest = [s for other, g in roles.items() for s in g if other not in whole]
            half = rest and all(s.grid == "fp16" for s in rest)
            if half:
                text += "; all other values are float16: did it underflow?"
            yield Verdict(WARN if half else NOTE, "zero-projection", text, 0.0)
        elif role == "wpe" and "mlp_proj" in whole:
            yield Verdict(NOTE, "zero", "wpe is zero: the model starts without positions", 0.0)
        else:
            key = roles[role][0].key
            text = f"{role} is zero throughout ({key}): never loaded or initialised"
            if role == "lm_head":
                text += "; zero on purpose (as µP advises), nothing but the head learns at step 1"
            yield Verdict(WARN if role == "lm_head" else FAIL, "zero", text, 0.0)


def _half_scaled(roles: dict[str, list[Sketch]], shape: Shape) -> Iterator[RoleVerdict]:
    """One of the two residual projections with GPT-2's depth factor, the other without."""
    if not {*PROJECTIONS, "v", "fc"} <= roles.keys() or shape.L < 2:
        return
    std = {role: typical(roles[role]) for role in roles}
    slack = sum(_tolerance(roles[role]) for role in (*PROJECTIONS, "fc"))
    base, factor = std["fc"], 1 / math.sqrt(2 * shape.L)
    if not _same(std["v"], base, slack):
        return
    fans = roles["fc"][0].shape[1] / roles["mlp_proj"][0].shape[1]
    if abs(math.log(math.sqrt(fans) / factor)) < 0.1 + slack:
        return  # a law by fan-in has the same two stds
    for role, other in (PROJECTIONS, PROJECTIONS[::-1]):
        if _same(std[role], base, slack) and _same(std[other], base * factor, slack):
            text = (
                f"{role} has the plain std {std[role]:.3g} and only {other} the depth factor "
                f"1/√(2L): both are added to the residual stream; scale both"
            )
            yield RoleVerdict(WARN, "half-scaled", text, std[role] / std[other], role=role)


# --- the nearest scheme ---


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
    beyond = total = 0
    for role, group in roles.items():
        found = []
        for s in group:
            law = scheme.law("fc" if role == "gate" else role, shape.values(s))
            std = law.true_std(*s.shape)
            beyond += law.kind == "truncated" and s.reach > 1.2 * law.cut * s.std
            total += 1
            if s.std > 0 or std == 0:
                found.append(1.0 if s.std == std == 0 else s.std / std if std > 0 else math.inf)
        ratio[role] = median(found) if found else 0.0
    if beyond > total / 2:
        return  # a law that is cut has no such values
    off = _off_roles(ratio, roles)
    yield Fit(scheme, 1.0, ratio, off)
    finite = [r for role, r in ratio.items() if 0 < r < math.inf and typical(roles[role]) > 0]
    factor = median(finite) if finite else 1.0
    if off and abs(math.log(factor)) > 2 * _CLOSE:
        scaled = {k: r / factor if typical(roles[k]) > 0 else r for k, r in ratio.items()}
        yield Fit(scheme, factor, scaled, _off_roles(scaled, roles))


def _off_roles(ratio: dict[str, float], roles: dict[str, list[Sketch]]) -> tuple[str, ...]:
    return tuple(
        role
        for role, r in ratio.items()
        if not (0 < r < math.inf) or abs(math.log(r)) > _CLOSE + _tolerance(roles[role])
    )


def _on_fit(
    fit: Fit | None,
    roles: dict[str, list[Sketch]],
    shape: Shape,
    *,
    skip: set[str],
    fused: int,
) -> Iterator[Verdict]:
    if fit is None:
        return
    if not fit.near:
        text = f"no scheme is near (closest: {fit.name}): the laws are not judged"
        yield Verdict(NOTE, "nearest", text)
        return
    about = f"nearest scheme: {fit.name} ({fit.scheme.about})"
    yield Verdict(OK, "nearest", about, fit.factor)
    if not 1 / _MAX_FACTOR < fit.factor < _MAX_FACTOR:
        text = f"every matrix is {fit.factor:.3g} times as large as {fit.scheme.name} has it"
        yield Verdict(WARN, "scale", f"{text}: is a unit or a factor wrong?", fit.factor)
    yield from _remarks(fit, shape)
    for role in fit.off:
        r = fit.ratio[role]
        if role in skip or not 0 < r < math.inf or typical(roles[role]) == 0:
            continue
        std = typical(roles[role])
        topic, why = _cause(role, roles[role], r, shape, fused)
        text = (
            f"{role}: std {std:.3g} is {r:.3g} times the {std / r:.3g} of {fit.name} "
            f"({roles[role][0].key}): {why}"
        )
        yield Verdict(WARN, topic, text, r)


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


def _cause(
    role: str, group: list[Sketch], r: float, shape: Shape, fused: int
) -> tuple[str, str]:  # fmt: skip
    """Topic and likely cause of a std that is ``r`` times the expected one."""
    s, std, near = group[0], typical(group), _CLOSE + _tolerance(group)
    fan_out, fan_in = s.shape
    depth = math.sqrt(2 * shape.L)
    uniform = sum(x.uniform for x in group) > len(group) / 2
    if uniform and _same(std, 1 / math.sqrt(3 * fan_in), near):
        return "torch-default", "torch's default for nn.Linear: not loaded, or not initialised"
    if role in TABLES and _same(std, 1.0, near):
        return "torch-default", "torch's default for nn.Embedding: not loaded, or not initialised"
    if uniform and _same(r, 1 / math.sqrt(3), near):
        return "uniform-bound", "uniform within ± the std that was meant; multiply the bound by √3"
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
    for found, value, topic, why in known:
        if _same(found, value, near):
            return topic, why
    if role in ("q", "k") and r > 1.5:
        return "hot", "attention starts sharper than the other matrices suggest"
    return "law", "drawn by another law than the other roles"


def _uniform_bound(roles: dict[str, list[Sketch]]) -> Iterator[Verdict]:
    """Every matrix uniform within ±0.02, whatever its fan-in: a std was taken for a bound."""
    live = [s for group in roles.values() for s in group if s.std > 0 and s.size >= 256]
    if len(live) < 4 or not all(s.uniform for s in live):
        return
    reach = sorted(s.reach for s in live)
    if _same(reach[0], 0.02, 0.05) and _same(reach[-1], 0.02, 0.05):
        text = (
            "every matrix is uniform within ±0.02, which has std 0.0115: 0.02 is usually a std; "
            "for a uniform law multiply the bound by √3"
        )
        yield Verdict(WARN, "uniform-bound", text, reach[-1])
