"""What statistics of the layers tell: rules without memory, one observation at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from nanogpt_cli.run.events import Layers
from nanogpt_cli.training.alarms.hysteresis import Finding

KINDS = (
    "update_ratio", "frozen", "dead_units", "attention_logits", "no_attention",
    "entropy_collapse", "activation_growth", "vanishing_gradient",
)  # fmt: skip
# log10 of update over weight. Early steps are large by design: warmup ends and Adam's second moment
# settles.
UPDATE_FROM, UPDATE_LOW, UPDATE_HIGH = 100, -5.0, -1.0
MAX_DEAD = 0.5
MAX_LOGIT = 50.0
# A layer whose largest attention logit is smaller than this weighs all positions alike.
MIN_LOGIT = 1e-6
MIN_ENTROPY = 0.02
MAX_STREAM = 300.0
MIN_GRADIENT = 1e-3


def judge(
    event: Layers, expected: Mapping[str, Sequence[float]], *, learns: bool
) -> Iterator[Finding]:
    """What holds at one observation.

    Args:
        event: its statistics.
        expected: values per layer at initialisation, by statistic.
        learns: whether the learning rate is known and not zero.
    """
    stats = event.stats
    yield from _updates(event.step, stats.get("update_ratio", ()), learns)
    for layer, share in enumerate(stats.get("dead", ())):
        if share > MAX_DEAD:
            yield Finding(
                "dead_units", "warning", f"{share:.0%} of layer {layer}'s MLP units are dead",
                "lower the learning rate or the weight decay; smooth activations recover "
                "better", layer, share,
            )  # fmt: skip
    yield from _attention(stats.get("attn_logit_max", ()), stats.get("attn_entropy", ()))
    yield from _growth(stats.get("resid_rms", ()), expected.get("resid_rms", ()))
    yield from _vanishing(stats.get("grad_norm", ()))


def _updates(step: int, ratios: Sequence[float], learns: bool) -> Iterator[Finding]:
    still = [layer for layer, ratio in enumerate(ratios) if ratio == -math.inf]
    if still and (learns or len(still) < len(ratios)):
        yield Finding(
            "frozen", "warning", f"the matrices of {_named(still)} do not change at all",
            "check learning-rate factors, requires_grad and gradients; if it is meant, ignore this",
            still[0], float(len(still)),
        )  # fmt: skip
    for layer, ratio in enumerate(ratios):
        usual = step < UPDATE_FROM or UPDATE_LOW <= ratio <= UPDATE_HIGH
        if not usual and math.isfinite(ratio):
            fast = ratio > UPDATE_HIGH
            yield Finding(
                "update_ratio", "warning",
                f"layer {layer} changes by 10^{ratio:.1f} of its weights a step",
                "lower the learning rate" if fast else "raise the learning rate; the layer "
                "hardly learns", layer, ratio,
            )  # fmt: skip


def _named(layers: Sequence[int]) -> str:
    """Layers in words: ``layer 3``, ``layers 0 to 4``, ``layers 0, 2 and 5``."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if layers[-1] - layers[0] == len(layers) - 1:
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"


def _attention(logits: Sequence[float], entropies: Sequence[float]) -> Iterator[Finding]:
    for layer, logit in enumerate(logits):
        if logit > MAX_LOGIT:
            yield Finding(
                "attention_logits", "warning",
                f"layer {layer}'s largest attention logit is {logit:.0f}",
                "attention is about to saturate: lower the learning rate", layer, logit,
            )  # fmt: skip
        elif abs(logit) < MIN_LOGIT:
            yield Finding(
                "no_attention", "warning",
                f"layer {layer} attends to all positions alike: its attention logits are zero",
                "queries and keys that are both zero get no gradient: initialise one of them with "
                "random values", layer, logit,
            )  # fmt: skip
    for layer, entropy in enumerate(entropies):
        if entropy < MIN_ENTROPY:
            yield Finding(
                "entropy_collapse", "warning",
                f"layer {layer} attends to single positions (entropy {entropy:.3f} of ln t)",
                "often precedes divergence: lower the learning rate", layer, entropy,
            )  # fmt: skip


def _growth(rms: Sequence[float], expected: Sequence[float]) -> Iterator[Finding]:
    """The stream grew far beyond what its initialisation predicts."""
    if not rms or len(expected) != len(rms):
        return
    factor = rms[-1] / max(expected[-1], 1e-12)
    if factor > MAX_STREAM:
        yield Finding(
            "activation_growth", "warning",
            f"the residual stream leaves the last layer {factor:.0f} times larger than at "
            "the start", "raise the weight decay or lower the learning rate",
            len(rms) - 1, factor,
        )  # fmt: skip


def _vanishing(grads: Sequence[float]) -> Iterator[Finding]:
    finite = [g for g in grads if math.isfinite(g)]
    if len(finite) < 2 or min(finite) >= MIN_GRADIENT * max(finite):
        return
    weakest = min(range(len(grads)), key=lambda i: grads[i])
    yield Finding(
        "vanishing_gradient", "warning",
        f"layer {weakest}'s gradient is {min(finite) / max(max(finite), 1e-30):.0e} of the "
        "largest", "check the initialisation: nanogpt init-inspect", weakest, grads[weakest],
    )  # fmt: skip
