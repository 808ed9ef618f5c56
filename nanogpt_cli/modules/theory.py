"""What mean-field theory expects of a module, where its plan is known and was checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor, nn

from nanogpt_cli.init.blueprint import Blueprint
from nanogpt_cli.init.signals import Signals
from nanogpt_cli.init.theory import expect_decoder
from nanogpt_cli.modules.blueprint import blueprint_of, plan_of
from nanogpt_cli.modules.reference import TOLERANCE, agrees

# tanh with a cap of c lowers a variance σ² by about 2σ²/c², half a percent here.
_CAPPED = 1 / 20
_CHECKED = 64  # positions of the pass that checks a plan


@dataclass(frozen=True)
class Theory:
    """What is expected of a module.

    Attributes:
        signals: the expectation; ``None`` if none is claimed.
        reason: why none is claimed, or what of it is left out; empty if all is there.
        difference: largest difference of logits in the check, relative to the largest logit.
    """

    signals: Signals | None
    reason: str = ""
    difference: float = math.nan


def theory_of(module: nn.Module, ids: Tensor, targets: Tensor, *, backward: bool = True) -> Theory:
    """The expectation for a module that has values and is in evaluation mode.

    Args:
        module: any; for an unknown architecture the reason is in the result.
        ids, targets: (B, T) int64 token ids and next ids; the cost grows with (B·T)².
        backward: whether to compute gradients.
    """
    plan = plan_of(module)
    if isinstance(plan, str):
        return Theory(None, plan)
    blueprint = blueprint_of(module)
    if isinstance(blueprint, str):
        return Theory(None, blueprint)
    difference = agrees(module, plan, ids[:1, :_CHECKED])
    if not difference <= TOLERANCE:
        return Theory(
            None,
            f"its logits are {difference:.1e} (relative) from those of the architecture"
            " that its configuration names",
            difference,
        )
    return replace(expectation(blueprint, ids, targets, backward=backward), difference=difference)


def expectation(
    blueprint: Blueprint, ids: Tensor, targets: Tensor, *, backward: bool = True
) -> Theory:
    """The expectation for a blueprint, or why there is none for these tokens."""
    for number, layer in enumerate(blueprint.layers):
        if 0 < layer.window < ids.shape[1]:
            return Theory(
                None,
                f"block {number} sees {layer.window} of {ids.shape[1]} positions; theory knows"
                " attention over all of the past",
            )
    signals = expect_blueprint(blueprint, ids, targets, backward=backward)
    if blueprint.score_cap and max(signals.score_std) > _CAPPED * blueprint.score_cap:
        return Theory(
            None,
            f"scores with a standard deviation of {max(signals.score_std):.2g} are bent by their"
            f" cap of {blueprint.score_cap:g}",
        )
    if blueprint.logit_cap and signals.logit_std > _CAPPED * blueprint.logit_cap:
        unknown = replace(signals, loss=math.nan, loss_any=math.nan, logit_std=math.nan)
        unknown = replace(unknown, own_logit=math.nan, grad_rms=[], weight_grad={})
        return Theory(
            unknown, f"loss and gradients: the cap of {blueprint.logit_cap:g} bends the logits"
        )
    reason = ""
    if backward and not signals.grad_rms:
        reason = "gradients: not known for mixtures of experts and for x₀ added again"
    return Theory(signals, reason)


def expect_blueprint(
    blueprint: Blueprint, ids: Tensor, targets: Tensor, *, backward: bool = True
) -> Signals:
    """Expected signals of a blueprint with moments; see ``init.theory.expect_decoder``."""
    return expect_decoder(blueprint, ids, targets, backward=backward)
