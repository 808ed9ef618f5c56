"""Expected causal self-attention over tokens of known covariance.

With Gaussian queries and keys, scores s_ij have covariance u_ii'·K_k(j, j') between rows i and i',
where u = scale²·head_size·K_q. For a small score variance, attention is expanded around the uniform
causal mean; for a large one, a few heads are sampled from the Gaussian field itself.

Rotary positions (Su et al. 2104.09864) turn a query and a key by angles that grow with the
position. Both are isotropic before, so that two scores have the covariance above times
c((j - j') - (i - i')), where c(m) is the mean over the head's channels of cos θm. The expansion
takes c(i - i')·c(j - j') for it, which is exact where i = i' or j = j'; sampled heads are rotated.

Heads that share their keys and values change no expectation: the output projection adds heads with
independent weights. Sums over fewer channels only scatter more.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from nanogpt_cli.init.attention_heads import Heads, root_of
from nanogpt_cli.init.attention_theory import Causal
from nanogpt_cli.init.probes import causal_softmax

# Above this score variance within a row, heads are sampled.
HOT = 0.15
_HEADS = 8
_CHANNELS = 512  # the sampled heads together have at least this many channels


class Field(Protocol):
    """Expected attention of one block; X is the (N, N) covariance of its normalised input."""

    X: Tensor
    score_std: float
    entropy: float

    def mix(self, gain: float, bias: float) -> Tensor:
        """Covariance of the heads' outputs for values of covariance gain·X + bias."""
        ...

    def own_power(self, gain: float, bias: float) -> Tensor:
        """Σ_j w_ij²·(variance of value j), (N,): what independent noise on each weight adds."""
        ...

    def back(self, G: Tensor, gain: float, bias: float, /) -> tuple[Tensor, Tensor, Tensor]:
        """Covariances of the gradients of q, k and v, for output gradients of covariance G.

        Values have covariance gain·X + bias.
        """
        ...


def field(causal: Causal, X: Tensor, heads: Heads, seed: int) -> Field:
    """Attention over tokens whose normalised stream has covariance X (N, N).

    Args:
        causal: the tokens' order.
        X: (N, N).
        heads: how queries and keys are made.
        seed: seed of the sampled heads.
    """
    Q, K = heads.covariances(X, causal)
    if heads.comparison:
        return Sampled(causal, X, heads, Q, K, seed)
    u = heads.scale**2 * heads.size * Q
    means = causal.means(K)
    spread = float((K.diagonal() - means[1].diagonal()).max())
    if float(u.diagonal().max()) * spread > HOT:
        return Sampled(causal, X, heads, u, K, seed)
    return Expanded(causal, X, heads, u, K, means)


class Expanded:
    """Attention to first order in the score variance, resummed to an exponential.

    Attributes:
        u: the score covariance for a unit key.
        K: the covariance of the keys.
        mean: ⟨X⟩, over the pasts along both axes.
        covariance: ⟨K̃∘X⟩ with K̃ centred over the pasts along both axes.
    """

    def __init__(
        self,
        causal: Causal,
        X: Tensor,
        heads: Heads,
        u: Tensor,
        K: Tensor,
        means: tuple[Tensor, Tensor],
    ) -> None:
        self.causal, self.X, self.heads, self.u, self.K = causal, X, heads, u, K
        self.score_std = causal.score_std(u.diagonal(), K)
        rows, both = means  # those of K; only what is named here is kept until the backward pass
        self.within = u.diagonal() * (causal.past(K) - both.diagonal())
        self.entropy = causal.mean_entropy(causal.log_count - self.within / 2)
        rows_of_X, self.mean = causal.means(X)
        partial = causal.rows((rows * rows_of_X).T.contiguous())
        self.covariance = causal.means(K * X)[1] - partial - partial.T + both * self.mean

    @cached_property
    def excess(self) -> Tensor:
        """(e^{uκ}-1)/κ with κ the spread of the keys; it tends to u for small scores."""
        own, other, _ = self.causal.pairs(self.K)
        spread = own - other
        return torch.expm1(self.u * spread) / spread if spread > 0 else self.u

    def mix(self, gain: float, bias: float) -> Tensor:
        """See ``Field.mix``."""
        return gain * self.mean + bias + gain * self.excess * self.covariance

    def own_power(self, gain: float, bias: float) -> Tensor:
        """See ``Field.own_power``; squared weights of t Gaussian scores add up to e^variance/t."""
        count = self.causal.count.repeat(self.causal.B)
        return self.within.exp() / count * (gain * self.causal.past(self.X) + bias)

    def back(self, G: Tensor, gain: float, _bias: float, /) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Field.back``; a bias shared by all values has no effect on the scores."""
        causal, heads = self.causal, self.heads
        count = causal.count.repeat(causal.B)
        plain = G / (count[:, None] * count)
        grad_v = causal.future_both(plain) + self._centred(plain * self.excess, self.K)
        grad_k = gain * self._centred(plain * self.u, self.X)
        grad_q = heads.scale**2 * heads.size * gain * G * self.covariance
        if heads.rope:
            alike = heads.agreement(causal)
            grad_q, grad_k = grad_q * alike, grad_k * alike
        return heads.ungained(grad_q, self.X, 0), heads.ungained(grad_k, self.X, 1), grad_v

    def _centred(self, W: Tensor, X: Tensor) -> Tensor:
        """Σ_{i≥j, i'≥k} W_ii'·X̃_jk, X̃ centred over the pasts of i and i'."""
        causal = self.causal
        mean_over_past = causal.rows(X)  # (j, i'): mean over k ≤ i'
        by_row = causal.future(W.T.contiguous()).T  # (j, i'): Σ over i ≥ j
        cross = causal.future(mean_over_past * by_row)
        total = causal.future_both(W)
        return X * total - cross - cross.T + causal.future_both(W * causal.means(X)[1])


class Sampled:
    """Heads sampled from the Gaussian field of queries and keys: valid for any score variance."""

    def __init__(
        self, causal: Causal, X: Tensor, heads: Heads, u: Tensor, K: Tensor, seed: int
    ) -> None:
        self.causal, self.X, self.heads, self.scale = causal, X, heads, heads.scale
        self.drawn = max(_HEADS, -(-_CHANNELS // heads.size))
        self.rng = torch.Generator().manual_seed(seed)
        self.pairs = causal.blend(X)
        self.root = root_of(X)
        if heads.comparison:
            assert causal.alone, "positions of a group differ"
            self.drawn += -self.drawn % heads.comparison.heads
            q, k = heads.compared(X, causal, self.drawn, self.rng)
        else:
            of_keys = self.root if causal.alone else _nearest_root(self.pairs)
            q, k = self._draw(self.root, *heads.q), self._draw(of_keys, *heads.k)
        self.q = heads.turned(heads.normalised(q, 0), causal)
        self.k = heads.turned(heads.normalised(k, 1), causal)
        scores = (self.scale * self.q @ self.k.mT).tril_()  # (heads, B, T, T), group means
        # Variance of the scores within a group. Keys of Gaussian scores weigh e^(variance / 2).
        inside = (heads.k[0] * (X - self.pairs).diagonal()).float().view(causal.B, 1, causal.T)
        self.inside = inside = (self.scale * self.q).square().sum(-1, keepdim=True) * inside
        seen = causal.size.float().repeat(causal.T, 1).tril_()
        seen.diagonal().copy_(causal.own)
        log_seen = seen.clamp(min=1).log()
        self.weights, entropy = causal_softmax(scores + (inside / 2 + log_seen).tril_())
        entropy += (self.weights * (log_seen - inside / 2)).sum(-1)
        self.entropy = causal.mean_entropy(entropy.mean(0).double().view(-1))
        self.score_std = causal.score_std(u.diagonal(), K)
        if heads.comparison:
            squares = scores.double().square().sum(-1).mean(0).view(-1)  # masked ones are zero
            seen_pairs = causal.count.repeat(causal.B) * causal.asked
            self.score_std = math.sqrt(float(squares @ causal.asked / seen_pairs.sum()))

    def _draw(self, root: Tensor, gain: float, bias: float) -> Tensor:
        """(heads, B, T, head_size) channels of covariance gain·rootᵀroot + bias."""
        z = torch.randn(len(root), self.drawn * self.heads.size, generator=self.rng)
        field = math.sqrt(gain) * (root @ z)
        if bias:
            field += math.sqrt(bias) * torch.randn(z.shape[1], generator=self.rng)
        shape = (self.causal.B, self.causal.T, self.drawn, self.heads.size)
        return field.view(shape).permute(2, 0, 1, 3)

    def mix(self, gain: float, bias: float) -> Tensor:
        """See ``Field.mix``."""
        return gain * self.mean + bias

    def own_power(self, gain: float, bias: float) -> Tensor:
        """See ``Field.own_power``."""
        values = (gain * self.X.diagonal() + bias).float().view(self.causal.B, 1, self.causal.T)
        return (self.weights.square() * values).sum(-1).mean(0).view(-1).double()

    @cached_property
    def mean(self) -> Tensor:
        """Covariance of the heads' outputs for values of covariance X."""
        mean = self._both_ways(self.pairs, self.weights)
        if not self.causal.alone:
            mean.diagonal().add_(self._uneven())
        return mean

    def _uneven(self) -> Tensor:
        """What a query's own variance (N,) gains because it weighs the keys of a group unevenly.

        The squared weights of m Gaussian scores add up to e^variance / m, and never to more than 1.
        """
        shape, m = (self.causal.B, 1, self.causal.T), self.causal.size.float()
        excess = (self.inside.exp() / m).clamp(max=1.0) - 1 / m
        own = (self.X - self.pairs).diagonal().float().view(shape) * m / (m - 1).clamp(min=1)
        return (self.weights.square() * excess * own).sum(-1).mean(0).view(-1).double()

    def _both_ways(self, K: Tensor, weights: Tensor) -> Tensor:
        """Mean over heads of W·K·Wᵀ, with W block-diagonal over sequences."""
        N, shape = len(K), (-1, self.causal.B, self.causal.T, len(K))
        once = (weights @ K.float().view(shape)).view(-1, N, N).transpose(1, 2)
        twice = weights @ once.reshape(shape)
        return twice.mean(0).view(N, N).double()

    def back(self, G: Tensor, gain: float, bias: float, /) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Field.back``; values and output gradients are sampled for those of q and k."""
        v = self._draw(self.root, gain, bias)
        g = self._draw(root_of(G), 1.0, 0.0)
        product = self.weights * (g @ v.transpose(-1, -2))
        scores = product - self.weights * product.sum(-1, keepdim=True)
        back = self.heads.turned(self.scale * scores @ self.k, self.causal, -1)
        grad_q = self.heads.ungained(self._covariance(back), self.X, 0)
        back = self.heads.turned(self.scale * scores.transpose(-1, -2) @ self.q, self.causal, -1)
        grad_k = self.heads.ungained(self._covariance(back), self.X, 1)
        return grad_q, grad_k, self._both_ways(G, self.weights.transpose(-1, -2))

    def _covariance(self, field: Tensor) -> Tensor:
        flat = field.permute(1, 2, 0, 3).reshape(len(self.X), -1)
        return (flat @ flat.T).double() / flat.shape[1]


def _nearest_root(K: Tensor) -> Tensor:
    """A matrix R such that R·Rᵀ is close to K and has its diagonal; K need not be a covariance."""
    values, vectors = torch.linalg.eigh(K)
    root = vectors * values.clamp(min=0).sqrt()
    size = root.square().sum(1).clamp_min(1e-300)
    scaled: Tensor = root * (K.diagonal() / size).sqrt()[:, None]
    return scaled.float()
