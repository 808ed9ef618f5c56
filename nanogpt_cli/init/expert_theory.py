"""How the weights of a mixture's experts agree between tokens."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_SAMPLES, _POINTS = 8192, 41


def expert_agreement(
    X: Tensor, *, experts: int, active: int, shares_sum: bool, gain: float
) -> Tensor:
    """E[Σ_e p_e(i)·p_e(j)] over routers, (N, N); p_e is the weight of expert e, 0 if not active.

    Different experts are independent, so the covariance of a mixture's output is that of one expert
    times this: Σ p² for a token with itself, 1/experts for tokens that are routed independently.
    Routing as in Mixtral (2401.04088) or, if not ``shares_sum``, with a softmax over all experts.

    Args:
        X: (N, N) covariance of the normalised stream.
        experts, active: how many there are, and how many compute a token.
        shares_sum: whether the weights of the active experts sum to 1.
        gain: router logits have covariance gain·X.
    """
    size = X.diagonal().clamp_min(1e-300).sqrt()
    rho = (X / (size[:, None] * size)).clamp(-1, 1)
    std = (gain * float(X.diagonal().mean())) ** 0.5
    table = torch.tensor(_table(experts, active, shares_sum, round(std, 9)), dtype=torch.float64)
    place = (rho + 1) / 2 * (_POINTS - 1)
    left = place.floor().long().clamp(max=_POINTS - 2)
    part = place - left
    return table[left] * (1 - part) + table[left + 1] * part


@lru_cache(maxsize=256)
def _table(experts: int, active: int, shares_sum: bool, std: float) -> tuple[float, ...]:
    """The agreement for correlations -1 to 1 of the router's logits, from sampled ones."""
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, _SAMPLES, experts, generator=rng, dtype=torch.float64)
    first = _weights(std * a, active, shares_sum)
    found = []
    for rho in torch.linspace(-1, 1, _POINTS).tolist():
        other = _weights(std * (rho * a + (1 - rho * rho) ** 0.5 * b), active, shares_sum)
        found.append(float((first * other).sum(-1).mean()))
    return tuple(found)


def _weights(logits: Tensor, active: int, shares_sum: bool) -> Tensor:
    """Weights of the experts, (samples, experts)."""
    everywhere = logits.softmax(-1)
    best = logits.topk(active, -1)
    chosen = best.values.softmax(-1) if shares_sum else everywhere.gather(-1, best.indices)
    return torch.zeros_like(logits).scatter(-1, best.indices, chosen)
