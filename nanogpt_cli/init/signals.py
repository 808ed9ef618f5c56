"""What is known about a forward and backward pass by depth, expected or measured alike."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

# Classes of matrix whose gradient norms are kept, as the parameters hold them.
GRADIENT_CLASSES = ("c_attn", "attn_proj", "fc", "mlp_proj")


@dataclass
class Signals:
    """Sizes of signals and gradients, block by block.

    "RMS" is over channels, positions and sequences. Lists over the stream have n_layer + 1
    entries, the first for the embedding; lists over blocks have n_layer. Gradient lists are empty
    where no backward pass was asked for.

    Attributes:
        stream_rms: residual stream.
        cosine: mean cosine between the stream's vectors at different positions of a sequence.
        attn_rms, mlp_rms: the branches as they join the stream.
        score_std: RMS of attention scores over the positions a query may see, after scaling.
        attn_entropy: entropy of attention over ln t, averaged over positions t ≥ 2; 1 is uniform.
        preact_std: RMS of the MLP's pre-activations.
        near_zero: share of hidden units whose activation stays below a hundredth of the layer's
            RMS on every token seen.
        grad_rms: gradient of the loss with respect to the stream.
        weight_grad: Frobenius norm of the loss gradient by class of matrix and block.
        loss: mean cross-entropy in nats.
        loss_any: the same averaged over every target there could be, instead of the given ones:
            without the chance of which logits those have.
        logit_std: of the logits over the vocabulary.
        own_logit: mean logit of the token that was just read, over the mean logit.
        token_share: share of the stream's variance that comes from the token embedding, at x0.
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
        """Stream RMS after the last block over that of the embedding."""
        first = self.stream_rms[0]
        return self.stream_rms[-1] / first if first else math.inf

    @property
    def gradient_ratio(self) -> float:
        """Gradient RMS at the embedding over that after the last block; NaN without a backward."""
        if not self.grad_rms or not self.grad_rms[-1]:
            return math.nan
        return self.grad_rms[0] / self.grad_rms[-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the two ratios."""
        return asdict(self) | {"growth": self.growth, "gradient_ratio": self.gradient_ratio}


def grid(length: int, points: int) -> list[int]:
    """At most ``points`` indices spread over ``range(length)``: the first two and the last, too."""
    if length <= points:
        return list(range(length))
    spread = {round(i * (length - 1) / (points - 2)) for i in range(points - 1)}
    return sorted({0, 1} | spread)
