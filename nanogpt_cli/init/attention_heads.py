"""What makes queries and keys out of the normalised stream, in expectation and drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_cli.init.attention_theory import Causal
from nanogpt_cli.init.blueprint import Comparison

# The share of a covariance below which a difference of two is rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Heads:
    """What makes queries and keys out of the normalised stream.

    Attributes:
        size: channels of a head.
        scale: factor on query·key.
        q, k: queries and keys have covariance q[0]·X + q[1] and k[0]·X + k[1].
        norms: E[g²] of the gains with which queries and keys are normalised to a root mean square
            of 1; ``None`` if they are not.
        eps: what that norm adds to the variance.
        rope: see ``blueprint.Layer``.
        comparison: how they compare positions instead of being drawn, if they do.
        places: (N, C) what the normalised stream holds of the positions, for a comparison.
    """

    size: int
    scale: float
    q: tuple[float, float]
    k: tuple[float, float]
    norms: tuple[float, float] | None = None
    eps: float = 0.0
    rope: tuple[float, ...] = ()
    comparison: Comparison | None = None
    places: Tensor | None = None

    def compared(
        self, X: Tensor, causal: Causal, count: int, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys (count, B, T, D) of sampled heads that compare positions.

        All read the same channels: what the stream holds there of the positions, and beside it
        values like those of all channels.
        """
        assert self.comparison is not None
        weights, n = self.comparison.weights(self.size), self.comparison.channels
        rest, known = X, torch.zeros(len(X), n)
        if self.places is not None:
            rest = X - self.places @ self.places.T / self.places.shape[1]
            known = self.places[:, :n].float()
        z = torch.randn(len(X), count * n, generator=rng)
        drawn = float(rest.trace()) > _ROUNDING * float(X.trace())  # else all is known
        x = known.repeat(1, count) + (root_of(rest) @ z if drawn else 0.0)
        x = x.view(causal.B, causal.T, count, n)
        repeats = count // self.comparison.heads
        q, k = (x.permute(2, 0, 1, 3) @ w.repeat(repeats, 1, 1)[:, None].mT for w in weights)
        return q, k

    def covariances(self, X: Tensor, causal: Causal) -> tuple[Tensor, Tensor]:
        """Covariances (N, N) of queries and keys as the scores see them."""
        Q, K = (gain * X + bias for gain, bias in (self.q, self.k))
        if self.norms:
            Q, K = (
                gain * C / pair_sizes(C, self.eps)
                for C, gain in zip((Q, K), self.norms, strict=True)
            )
        if not self.rope:
            return Q, K
        alike = self.agreement(causal)
        return Q * alike, K * alike

    def agreement(self, causal: Causal) -> Tensor:
        """c(i - j) for all pairs of tokens, (N, N), by their positions."""
        angles = self._angles(causal)
        turned = torch.cat([angles.cos(), angles.sin()], 1)  # (T, 2·pairs)
        mean = 1 - 2 * (len(self.rope) - turned @ turned.T) / self.size
        return mean.repeat(causal.B, causal.B)

    def _angles(self, causal: Causal) -> Tensor:
        """By how much each position is turned, (T, pairs); a group stands in its middle."""
        return causal.count[:, None] * torch.tensor(self.rope, dtype=torch.float64)

    def turned(self, x: Tensor, causal: Causal, direction: int = 1) -> Tensor:
        """Vectors (…, T, D) rotated by their positions; ``direction`` -1 turns back."""
        if not self.rope:
            return x
        angles, pairs = direction * self._angles(causal).float(), len(self.rope)
        cos, sin = angles.cos(), angles.sin()
        a, b, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def normalised(self, x: Tensor, which: int) -> Tensor:
        """Queries (``which`` 0) or keys (1), (…, D), after their norm."""
        if not self.norms:
            return x
        size = (x.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return x * (math.sqrt(self.norms[which]) / size)

    def ungained(self, grad: Tensor, X: Tensor, which: int) -> Tensor:
        """Covariance (N, N) of gradients before the norm of queries or keys.

        It passes no gradient along its input, which is one of the head's many directions.
        """
        if not self.norms:
            return grad
        gain, bias = (self.q, self.k)[which]
        return self.norms[which] * grad / pair_sizes(gain * X + bias, self.eps)


def pair_sizes(C: Tensor, eps: float) -> Tensor:
    """s_i·s_j (N, N), by which a norm divides vectors of covariance C."""
    s = (C.diagonal() + eps).sqrt()
    return s[:, None] * s


def root_of(K: Tensor) -> Tensor:
    """A matrix R with R·Rᵀ = K, for K that is positive semi-definite up to rounding."""
    size = K.diagonal().mean().clamp_min(1e-300)
    unit = (K / size).double()
    for jitter in (1e-9, 1e-6, 1e-4, 1e-2):
        root, failed = torch.linalg.cholesky_ex(unit + jitter * torch.eye(len(K)).double())
        if not int(failed):
            break
    scaled: Tensor = root * size.sqrt()
    return scaled.float()
