"""Expected causal self-attention over tokens of known covariance.

With Gaussian queries and keys, scores s_ij have covariance u_ii'·K_k(j, j') between rows i and i',
where u = scale²·head_size·K_q. For a small score variance, attention is expanded around the uniform
causal mean; for a large one, a few heads are sampled from the Gaussian field itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from nanogpt_cli.init.probes import causal_softmax

# Above this score variance within a row, heads are sampled.
HOT = 0.15
_ALONE, _NEAR = 48, 8  # positions that are groups of one; neighbours that stand for a group
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


def group_sizes(length: int) -> Tensor:
    """Sizes of the groups into which ``Causal`` may divide ``length`` positions, (groups,).

    The first positions stand alone, because attention over a short past changes quickly; later
    groups grow with the position. 1,024 positions make 118 groups.
    """
    sizes, done = [], 0
    while done < length:
        sizes.append(min(1 + done // 24 if done >= _ALONE else 1, length - done))
        done += sizes[-1]
    return torch.tensor(sizes)


class Causal:
    """Causal means over the N = B·T concatenated tokens of B sequences of length T.

    Each of the T places of a sequence may stand for a group of neighbouring positions, whose
    covariances with all others are alike. Matrices (N, N) then hold on their diagonal the variance
    of one position, and ``blend`` gives the mean over the pairs of a group. Gradients need groups
    of one.

    Args:
        B: number of sequences.
        sizes: (T,) positions per group, in order.
        last: number of final positions whose queries count for entropy and scores; 0 for all.
    """

    def __init__(self, B: int, sizes: Tensor, last: int = 0) -> None:
        self.B, self.T = B, len(sizes)
        self.size = sizes.double()
        self.alone = int(sizes.max()) == 1
        self.own = (self.size + 1) / 2  # positions of its own group that a query sees on average
        ends = self.size.cumsum(0)
        self.count = ends - self.size + self.own
        self.log_count = self.count.log().repeat(B)
        self.share = (self.size / (B * ends[-1])).repeat(B)  # of each place in a mean over all
        asked = (self.size - (ends[-1] - last - ends + self.size).clamp(min=0)).clamp(min=0)
        self.asked = (asked if last else self.size).repeat(B)

    def average(self, values: Tensor) -> float:
        """Mean over all positions of (N,) values."""
        return float(self.share @ values)

    def pairs(self, K: Tensor) -> tuple[float, float, int]:
        """Mean of K over pairs of a position with itself, over other pairs, and the positions."""
        own, N = self.average(K.diagonal()), self.B * int(self.size.sum())
        mean = float(self.share @ self.blend(K) @ self.share)
        return own, (mean * N - own) / max(1, N - 1), N

    def blend(self, K: Tensor) -> Tensor:
        """K with the mean over all pairs of a group on its diagonal."""
        if self.alone:
            return K
        view, width = K.view(self.B, self.T, self.B, self.T), min(_NEAR, self.T - 1)
        blended = view.clone()
        for b in range(self.B):
            block = view[b, :, b]
            near = torch.stack([block.diagonal(-d)[width - d :] for d in range(1, width + 1)])
            size = self.size[width:]
            mean = (block.diagonal()[width:] + (size - 1) * near.mean(0)) / size
            blended[b, :, b].diagonal()[width:] = mean
        return blended.view(K.shape)

    def rows(self, K: Tensor) -> Tensor:
        """Mean over each token's past along the last axis: (N, N) to (N, N)."""
        view = K.view(-1, self.B, self.T)
        total = (view * self.size).cumsum(-1) - view * (self.size - self.own)
        return (total / self.count).view(K.shape)

    def both(self, K: Tensor) -> Tensor:
        """Mean over the past along both axes."""
        return self.rows(self.rows(K).T.contiguous()).T

    def future(self, K: Tensor) -> Tensor:
        """Sum over each token and its future along the last axis."""
        view = K.view(-1, self.B, self.T)
        total = view.sum(-1, keepdim=True)
        return (total - view.cumsum(-1) + view).view(K.shape)

    def future_both(self, K: Tensor) -> Tensor:
        """Sum over the future along both axes."""
        return self.future(self.future(K).T.contiguous()).T

    def mean_cosine(self, C: Tensor) -> float:
        """Mean correlation of different positions within a sequence."""
        if self.T < 2:
            return math.nan
        s = C.diagonal().clamp_min(1e-300).sqrt()
        cosines, length = self.blend(C / (s[:, None] * s)), float(self.size.sum())
        total = sum(float(self.size @ part @ self.size) for part in self.diagonal_blocks(cosines))
        return (total / self.B - length) / (length * (length - 1))

    def past(self, X: Tensor) -> Tensor:
        """Mean variance (N,) over each query's past, for keys of covariance X (N, N)."""
        return self.rows(X.diagonal()[None]).squeeze(0)

    def score_std(self, u: Tensor, gain: float, bias: float, X: Tensor) -> float:
        """Standard deviation of the scores of the asked queries; exact, however large it is.

        Args:
            u: (N,) variance of each query's score with a key of variance 1.
            gain, bias: keys have covariance gain·X + bias.
            X: (N, N).
        """
        weight = self.count.repeat(self.B) * self.asked
        return math.sqrt(float((u * (gain * self.past(X) + bias) * weight).sum() / weight.sum()))

    def mean_entropy(self, entropy: Tensor) -> float:
        """Mean of (N,) entropies over ln t, over the asked positions t ≥ 2; 1 if there is none."""
        weight = self.asked * (self.log_count > 0)
        if not float(weight.sum()):
            return 1.0
        return float(weight @ (entropy / self.log_count.clamp(min=1e-9)) / weight.sum())

    def diagonal_blocks(self, K: Tensor) -> Iterator[Tensor]:
        """Yield the (T, T) diagonal block of each sequence."""
        for b in range(self.B):
            part = slice(b * self.T, (b + 1) * self.T)
            yield K[part, part]

    def field(
        self,
        X: Tensor,
        *,
        q: tuple[float, float],
        k: tuple[float, float],
        head_size: int,
        scale: float,
        seed: int,
    ) -> Field:
        """Attention for queries of covariance q[0]·X + q[1] and keys of k[0]·X + k[1].

        Args:
            X: (N, N) covariance of the normalised residual stream.
            q: gain and bias of the queries.
            k: gain and bias of the keys.
            head_size: channels per head.
            scale: factor on query·key.
            seed: seed of the sampled heads.
        """
        unit = scale**2 * head_size
        u = unit * (q[0] * X + q[1])
        spread = float((k[0] * (X.diagonal() - self.both(self.blend(X)).diagonal())).max())
        if float(u.diagonal().max()) * spread > HOT:
            return Sampled(self, X, q, k, head_size, scale, seed)
        return Expanded(self, X, u, k[0], unit, k[1])


class Expanded:
    """Attention to first order in the score variance, resummed to an exponential.

    ``u`` is the score variance for a unit key, ``unit`` that for a unit query and a unit key.
    """

    def __init__(
        self, causal: Causal, X: Tensor, u: Tensor, key: float, unit: float, bias: float
    ) -> None:
        self.causal, self.X, self.u, self.key, self.unit = causal, X, u, key, unit
        self.score_std = causal.score_std(u.diagonal(), key, bias, X)
        self.within = u.diagonal() * key * (causal.past(X) - self.mean.diagonal())
        self.entropy = causal.mean_entropy(causal.log_count - self.within / 2)

    @cached_property
    def mean(self) -> Tensor:
        """⟨X⟩: mean over the pasts along both axes."""
        return self.causal.both(self.causal.blend(self.X))

    @cached_property
    def covariance(self) -> Tensor:
        """⟨X̃∘X⟩ with X̃ centred over the pasts along both axes."""
        causal = self.causal
        square = causal.both(causal.blend(self.X * self.X))
        partial = causal.rows(causal.rows(causal.blend(self.X)).square().T.contiguous())
        return square - partial - partial.T + self.mean.square()

    @cached_property
    def excess(self) -> Tensor:
        """(e^{uκ}-1)/κ with κ the spread of the keys; it tends to u for small scores."""
        own, other, _ = self.causal.pairs(self.X)
        spread = self.key * (own - other)
        return torch.expm1(self.u * spread) / spread if spread > 0 else self.u

    def mix(self, gain: float, bias: float) -> Tensor:
        """See ``Field.mix``."""
        return gain * self.mean + bias + self.excess * (self.key * gain) * self.covariance

    def own_power(self, gain: float, bias: float) -> Tensor:
        """See ``Field.own_power``; squared weights of t Gaussian scores add up to e^variance/t."""
        count = self.causal.count.repeat(self.causal.B)
        return self.within.exp() / count * (gain * self.causal.past(self.X) + bias)

    def back(self, G: Tensor, gain: float, _bias: float, /) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Field.back``; a bias shared by all values has no effect on the scores."""
        count = self.causal.count.repeat(self.causal.B)
        plain = G / (count[:, None] * count)
        grad_v = self.causal.future_both(plain) + self.key * self._centred(plain * self.excess)
        grad_k = gain * self._centred(plain * self.u)
        grad_q = (self.unit * gain * self.key) * G * self.covariance
        return grad_q, grad_k, grad_v

    def _centred(self, W: Tensor) -> Tensor:
        """Σ_{i≥j, i'≥k} W_ii'·X̃_jk, X̃ centred over the pasts of i and i'."""
        causal = self.causal
        mean_over_past = causal.rows(self.X)  # (j, i'): mean over k ≤ i'
        by_row = causal.future(W.T.contiguous()).T  # (j, i'): Σ over i ≥ j
        cross = causal.future(mean_over_past * by_row)
        total = causal.future_both(W)
        return self.X * total - cross - cross.T + causal.future_both(W * self.mean)


class Sampled:
    """Heads sampled from the Gaussian field of queries and keys: valid for any score variance."""

    def __init__(
        self,
        causal: Causal,
        X: Tensor,
        q: tuple[float, float],
        k: tuple[float, float],
        head_size: int,
        scale: float,
        seed: int,
    ) -> None:
        self.causal, self.X, self.scale = causal, X, scale
        self.heads = max(_HEADS, -(-_CHANNELS // head_size))
        self.head_size = head_size
        self.rng = torch.Generator().manual_seed(seed)
        self.pairs = causal.blend(X)
        self.root = _root(X)
        of_keys = self.root if causal.alone else _nearest_root(self.pairs)
        self.q, self.k = self._draw(self.root, *q), self._draw(of_keys, *k)
        scores = (scale * self.q @ self.k.mT).tril_()  # (heads, B, T, T), means over each group
        # Variance of the scores within a group. Keys of Gaussian scores weigh e^(variance / 2).
        inside = (k[0] * (X - self.pairs).diagonal()).float().view(causal.B, 1, causal.T)
        self.inside = inside = (scale * self.q).square().sum(-1, keepdim=True) * inside
        seen = causal.size.float().repeat(causal.T, 1).tril_()
        seen.diagonal().copy_(causal.own)
        log_seen = seen.clamp(min=1).log()
        self.weights, entropy = causal_softmax(scores + (inside / 2 + log_seen).tril_())
        entropy += (self.weights * (log_seen - inside / 2)).sum(-1)
        self.entropy = causal.mean_entropy(entropy.mean(0).double().view(-1))
        u = scale**2 * head_size * (q[0] * X.diagonal() + q[1])
        self.score_std = causal.score_std(u, *k, X)

    def _draw(self, root: Tensor, gain: float, bias: float) -> Tensor:
        """(heads, B, T, head_size) channels of covariance gain·rootᵀroot + bias."""
        z = torch.randn(len(root), self.heads * self.head_size, generator=self.rng)
        field = math.sqrt(gain) * (root @ z)
        if bias:
            field += math.sqrt(bias) * torch.randn(z.shape[1], generator=self.rng)
        shape = (self.causal.B, self.causal.T, self.heads, self.head_size)
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
        g = self._draw(_root(G), 1.0, 0.0)
        product = self.weights * (g @ v.transpose(-1, -2))
        scores = product - self.weights * product.sum(-1, keepdim=True)
        grad_q = self._covariance(self.scale * scores @ self.k)
        grad_k = self._covariance(self.scale * scores.transpose(-1, -2) @ self.q)
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


def _root(K: Tensor) -> Tensor:
    """A matrix R with R·Rᵀ = K, for K that is positive semi-definite up to rounding."""
    size = K.diagonal().mean().clamp_min(1e-300)
    unit = (K / size).double()
    for jitter in (1e-9, 1e-6, 1e-4, 1e-2):
        root, failed = torch.linalg.cholesky_ex(unit + jitter * torch.eye(len(K)).double())
        if not int(failed):
            break
    scaled: Tensor = root * size.sqrt()
    return scaled.float()
