"""Verdicts on settings of today's parts that leave no trace in the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nanogpt_cli.init.blueprint import Blueprint
from nanogpt_cli.init.lint import WARN, Verdict


def on_parts(plan: Blueprint, length: int, first_rms: float) -> list[Verdict]:
    """Judge the rotation and the epsilon of a decoder.

    Args:
        plan: the decoder.
        length: positions of its context.
        first_rms: root mean square of the stream before the first block.
    """
    return [*_rotation(plan, length), *_epsilon(plan, first_rms)]


def _rotation(plan: Blueprint, length: int) -> Iterator[Verdict]:
    slowest = [min(layer.rope) for layer in plan.layers if layer.rope]
    if not slowest or min(slowest) <= 0:
        return
    turns = 2 * math.pi / min(slowest)
    if turns < length:
        text = (
            f"the slowest rotation repeats after {turns:,.0f} positions, but the context has "
            f"{length:,}: far positions look like near ones; raise rope_theta"
        )
        yield Verdict(WARN, "rope-period", text, turns)


def _epsilon(plan: Blueprint, first_rms: float) -> Iterator[Verdict]:
    if plan.norm != "none" and plan.placement == "pre" and plan.eps > first_rms**2:
        text = (
            f"the epsilon {plan.eps:g} of the norms is larger than the mean square "
            f"{first_rms**2:.3g} of the stream before the first block: it, not the stream, is what "
            "they divide by; lower it"
        )
        yield Verdict(WARN, "norm-epsilon", text, plan.eps)
