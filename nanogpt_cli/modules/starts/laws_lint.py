"""Findings about the code that gives a module its initial values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from nanogpt_cli.init.lint import FAIL, NOTE, WARN, Verdict
from nanogpt_cli.modules.starts.laws import ParameterLaw, by_pattern, depth_factors

_WRITERS = ("attn_proj", "mlp_proj")


def findings(laws: list[ParameterLaw], roles: Mapping[str, str] | None = None) -> list[Verdict]:
    """Judge how parameters start; blocks are folded into one line.

    Args:
        laws: as ``read_laws`` found them.
        roles: role of each parameter by name (``anatomy.ROLES``), for the depth factors.
    """
    found: list[Verdict] = []
    for pattern, group in by_pattern(laws).items():
        for judge in (_untouched, _left_to_constructor, _drawn_twice, _hard_coded):
            chosen = [law for law in group if judge(law)]
            if chosen and (words := judge(chosen[0])):
                severity, topic, text = words
                found.append(Verdict(severity, topic, f"{_named(pattern, chosen)}: {text}"))
                break
    return found + list(_depth(laws, roles or {}))


def _named(pattern: str, group: list[ParameterLaw]) -> str:
    return pattern if len(group) == 1 else f"{pattern} ({len(group)})"


Finding = tuple[str, str, str]


def _untouched(law: ParameterLaw) -> Finding | None:
    if law.kind != "untouched":
        return None
    return (FAIL, "never-initialised", "nothing writes initial values into its memory")


def _left_to_constructor(law: ParameterLaw) -> Finding | None:
    if not law.left_to_constructor:
        return None
    text = f"_init_weights leaves it out: it keeps the default of its torch.nn layer, {law.law}"
    return (WARN, "constructor-default", text)


def _drawn_twice(law: ParameterLaw) -> Finding | None:
    """A parameter drawn by one law and then by another; twice by the same does no harm."""
    if not (draws := law.draws):
        return None
    last = draws[-1]
    others = [d for d in draws if (d.kind, d.arguments) != (last.kind, last.arguments)]
    if not others:
        return None
    visits = [d for d in others if d.module != last.module]  # of another module, by another name
    other = visits[-1] if law.tied and visits else others[-1]
    text = f"{other} in {other.where} and then as {last} in {last.where}, which stays"
    if law.tied and visits:
        topic = "overwritten-after-tying"
        return (WARN, topic, f"tied to {law.tied[0]} before it is drawn, as {text}")
    return (NOTE, "doubly-initialised", f"drawn as {text}")


def _hard_coded(law: ParameterLaw) -> Finding | None:
    if math.isnan(law.ratio) or abs(law.ratio - 1) > 8 * law.error or law.error > 0.05:
        return None
    where = f" in {law.draws[-1].where}" if law.draws else ""
    text = f"its std is {law.std:.3g}{where}, whatever initializer_range is"
    return (NOTE, "hard-coded-std", text)


def _depth(laws: list[ParameterLaw], roles: Mapping[str, str]) -> Iterator[Verdict]:
    factors = depth_factors(laws)
    if not factors:
        return
    role_of = {law.pattern: roles.get(law.name, "") for law in laws}
    for pattern, factor in factors.items():
        role = role_of[pattern]
        text = f"{pattern}: std has the depth factor {factor}"
        if role and role not in _WRITERS:
            text += f", but it is {role}, which does not write to the residual stream"
            yield Verdict(WARN, "depth-factor", text)
        else:
            yield Verdict(NOTE, "depth-factor", text)
    # One matrix that all blocks share, or one in some of them, cannot be read for such a factor.
    groups = by_pattern(laws)
    blocks = max(len(groups[pattern]) for pattern in factors)
    present = {role_of[pattern] for pattern, group in groups.items() if len(group) == blocks}
    present &= {*_WRITERS}
    scaled = {role_of[pattern] for pattern in factors} & present
    if scaled and (left := present - scaled):
        text = (
            f"{left.pop()} writes to the residual stream without the depth factor of {scaled.pop()}"
        )
        yield Verdict(WARN, "depth-factor", text)
