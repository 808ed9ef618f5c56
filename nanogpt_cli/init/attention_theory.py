"""Means over the past of tokens of known covariance, which causal attention takes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_ALONE, _NEAR = 48, 8  # positions that are groups of one; neighbours that stand for a group


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
        if self.alone:
            return view.cumsum(-1).div_(self.count).view(K.shape)
        total = (view * self.size).cumsum(-1) - view * (self.size - self.own)
        return (total / self.count).view(K.shape)

    def means(self, K: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of K, blended, over the past along the last axis, and along both."""
        rows = self.rows(self.blend(K))
        return rows, self.rows(rows.T.contiguous()).T

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

    def score_std(self, u: Tensor, K: Tensor) -> float:
        """Standard deviation of the scores of the asked queries; exact, however large it is.

        Args:
            u: (N,) variance of each query's score with a key of variance 1.
            K: (N, N) covariance of the keys.
        """
        weight = self.count.repeat(self.B) * self.asked
        return math.sqrt(float((u * self.past(K) * weight).sum() / weight.sum()))

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
