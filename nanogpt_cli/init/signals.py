"""Statistics of a forward and backward pass by depth, whether expected or measured."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

# Classes of matrix whose gradient norms are kept, as the parameters hold them.
GRADIENT_CLASSES = ("c_attn", "attn_proj", "fc", "mlp_proj")


@dataclass
class Signals:
    """Sizes of signals and gradients, block by block.

    "RMS" is over channels, positions and sequences. Lists over the residual stream have n_layer + 1
    entries, the first for the embedding; lists over blocks have n_layer. Gradient lists are empty
    if there was no backward pass.

    Attributes:
        stream_rms: RMS of the residual stream.
        cosine: mean cosine between residual stream vectors at different positions of a sequence.
        attn_rms, mlp_rms: RMS of the branches as they are added to the residual stream.
        score_std: RMS of the scaled attention scores over the positions that a query may see.
        attn_entropy: attention entropy over ln t, averaged over positions t ≥ 2; 1 is uniform.
        preact_std: RMS of the MLP's pre-activations.
        near_zero: share of dead units: hidden units whose activation stays below a hundredth of the
            layer's RMS on every token.
        grad_rms: RMS of the loss gradient with respect to the residual stream.
        weight_grad: Frobenius norm of the loss gradient by matrix class and block.
        loss: mean cross-entropy in nats.
        loss_any: mean cross-entropy averaged over all possible targets instead of the given ones,
            which removes the chance of how likely those are.
        logit_std: standard deviation of the logits over the vocabulary.
        own_logit: mean logit of the token that was just read, minus the mean logit.
        token_share: share of the embedding's variance that comes from the token table.
    """

    stream_rms: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    attn_rms: list[float] = field(default_factory=list)
    mlp_rms: list[float] = field(default_factory=list)
    score_std: list[float] = field(default_factory=list)
    attn_entropy: list[float] = field(default_factory=list)
    preact_std: list[float] = field(default_factory=list)
    near_zero: list[float] = field(default_factory=list)
    grad_rms: list[float] = field(default_factory=list)
    weight_grad: dict[str, list[float]] = field(default_factory=dict)
    loss: float = math.nan
    loss_any: float = math.nan
    logit_std: float = math.nan
    own_logit: float = math.nan
    token_share: float = math.nan

    @property
    def growth(self) -> float:
        """RMS of the residual stream after the last block over that of the embedding."""
        first = self.stream_rms[0]
        return self.stream_rms[-1] / first if first else math.inf

    @property
    def gradient_ratio(self) -> float:
        """Gradient RMS at the embedding over that after the last block; NaN without gradients."""
        if not self.grad_rms or not self.grad_rms[-1]:
            return math.nan
        return self.grad_rms[0] / self.grad_rms[-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, including the two ratios."""
        return asdict(self) | {"growth": self.growth, "gradient_ratio": self.gradient_ratio}


def grid(length: int, points: int) -> list[int]:
    """At most ``points`` indices spread over ``range(length)``, with the first two and the last."""
    if length <= points:
        return list(range(length))
    spread = {round(i * (length - 1) / (points - 2)) for i in range(points - 1)}
    return sorted({0, 1} | spread)
