"""Scales that disagree: over depth, between roles, with the nearest scheme."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from nanogpt_cli.init.detect import cut_of
from nanogpt_cli.init.lint import FAIL, NOTE, WARN, Verdict
from nanogpt_cli.modules.anatomy import MATRICES
from nanogpt_cli.modules.faults import chance
from nanogpt_cli.modules.faults.lint_depth import over_depth
from nanogpt_cli.modules.faults.lint_scheme import nearest, on_fit
from nanogpt_cli.modules.faults.scales import PROJECTIONS, Shape, by_role, same, tolerance, typical
from nanogpt_cli.modules.faults.sketch import Sketch


def on_laws(sketches: list[Sketch], shape: Shape, fused: int = 3) -> Iterator[Verdict]:
    """Judge the scales of a start.

    Args:
        sketches: those of the module.
        shape: its sizes.
        fused: how many (d, d) matrices a fused q, k, v parameter has, for Xavier's law on it.
    """
    roles = by_role(sketches)
    known = {role: v for role, group in roles.items() if (v := over_depth(role, group, shape))}
    yield from known.values()
    yield from on_zeros(sketches)
    alive = {r: g for r, g in roles.items() if any(s.std > 0 for s in g)}
    half = list(_half_scaled(alive, shape))
    yield from half
    best = nearest(roles, shape)
    yield from on_fit(
        best, roles, shape, skip={*known, *(PROJECTIONS if half else ())}, fused=fused
    )
    yield from _uncut(alive)
    yield from _uniform_bound(alive)


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


def _half_scaled(roles: dict[str, list[Sketch]], shape: Shape) -> Iterator[Verdict]:
    """A residual projection without GPT-2's depth factor, which the other one has."""
    if not {*PROJECTIONS, "v", "fc"} <= roles.keys() or shape.L < 2:
        return
    std = {role: typical(roles[role]) for role in roles}
    slack = sum(tolerance(roles[role]) for role in (*PROJECTIONS, "fc"))
    base, factor = std["fc"], 1 / math.sqrt(2 * shape.L)
    if not same(std["v"], base, slack):
        return
    fans = roles["fc"][0].shape[1] / roles["mlp_proj"][0].shape[1]
    if abs(math.log(math.sqrt(fans) / factor)) < 0.1 + slack:
        return  # a law by fan-in has the same two stds
    for role, other in (PROJECTIONS, PROJECTIONS[::-1]):
        ratio = std[other] / base
        if abs(math.log(ratio / fans)) < abs(math.log(ratio / factor)) - 0.01:
            continue  # a law with out/in, as spectral-mup, is nearer
        if same(std[role], base, slack) and same(std[other], base * factor, slack):
            text = (
                f"{role} has the plain std {std[role]:.3g} and only {other} the depth factor "
                f"1/√(2L): both are added to the residual stream; scale both"
            )
            yield Verdict(WARN, "half-scaled", text, std[role] / std[other])


def _uncut(roles: dict[str, list[Sketch]]) -> Iterator[Verdict]:
    """A matrix with values beyond the cut that another one of the same scale keeps.

    torch's trunc_normal_ takes absolute bounds: its default of ±2 is 100σ at std 0.02.
    """
    cuts: dict[str, tuple[float, float]] = {}
    for role, group in roles.items():
        live = [s for s in group if s.std > 0]
        furthest = max(s.reach / s.std for s in live)
        # As many values of a normal law would hardly all lie within.
        rate = -sum(s.size for s in live) * math.log(max(1e-300, math.erf(furthest / math.sqrt(2))))
        found = cut_of(furthest)
        if found and rate > chance.limit(len(roles)) and median(s.kurtosis for s in live) < 2.95:
            cuts[role] = found
    kept = [(s, *cut) for role, cut in cuts.items() for s in roles[role] if s.std > 0]
    for s in [s for role in roles if role in MATRICES and role not in cuts for s in roles[role]]:
        for other, cut, true_std in kept:
            sigma = other.std / true_std
            if s.reach > 1.1 * cut * sigma and same(s.std, sigma):
                text = (
                    f"{s.part.role} reaches {s.reach / sigma:.1f}σ ({s.key}), but {other.part.role}"
                    f" is cut at ±{cut:g}σ: the bounds of its law have no effect; trunc_normal_ "
                    "takes them in the unit of the weights, not in σ"
                )
                yield Verdict(WARN, "truncation", text, s.reach / sigma)
                return


def _uniform_bound(roles: dict[str, list[Sketch]]) -> Iterator[Verdict]:
    """Every matrix uniform within ±0.02, whatever its fan-in: a std was taken for a bound."""
    live = [s for group in roles.values() for s in group if s.std > 0 and s.size >= 256]
    if len(live) < 4 or not all(s.uniform for s in live):
        return
    reach = sorted(s.reach for s in live)
    if same(reach[0], 0.02, 0.05) and same(reach[-1], 0.02, 0.05):
        text = (
            "every matrix is uniform within ±0.02, which has std 0.0115: 0.02 is usually a std; "
            "for a uniform law multiply the bound by √3"
        )
        yield Verdict(WARN, "uniform-bound", text, reach[-1])
