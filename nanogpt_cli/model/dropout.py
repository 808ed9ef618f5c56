"""Dropout whose noise on a CPU depends on the sequence, not on the state of a shared generator.

On a CPU, PyTorch draws dropout masks value by value from a generator that all threads share, and
with dropout it falls back from its fused attention kernel to one that stores every intermediate of
the softmax. Here each sequence of a step has its own generator, so its noise is a function of
(seed, step, slot), whatever micro-batch or part it is computed in. One random word gives four mask
values, and attention is computed in strips of queries, which skips most of the masked scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Queries per strip, and the most scores computed at once: the working set should fit a core's cache
# (the fastest of 32 to 256 queries and 1 to 32 sequences of 6 × 256 × 64).
_STRIP = 128
_SCORES = 2**20 * 3 // 2
# Each mask value takes 16 random bits, so the dropout probability is exact to 1/65536.
_BITS = 16
_BF16_ONE = np.uint16(0x3F80)


class Noise:
    """Dropout masks for some sequences, drawn in the order in which the model asks for them.

    Args:
        seeds: one per sequence.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

    def __len__(self) -> int:
        return len(self._generators)

    def keep(self, shape: Sequence[int], p: float, sequences: slice = slice(None)) -> Tensor:
        """Draw a mask that is zero with probability ``p`` and one otherwise.

        Args:
            shape: of the mask; its first dimension is divided evenly among the sequences, in order.
            p: the share to drop, 0 ≤ p < 1.
            sequences: the sequences that the mask is for.

        Returns:
            a bfloat16 tensor of that shape.
        """
        generators = self._generators[sequences]
        count = math.prod(shape) // len(generators)
        words = np.empty((len(generators), math.ceil(count * _BITS / 64)), np.uint64)
        for row, generator in zip(words, generators, strict=True):
            row[:] = generator.integers(2**64 - 1, size=row.size, dtype=np.uint64, endpoint=True)
        dropped = np.uint16(min(round(p * 2**_BITS), 2**_BITS - 1))
        kept = words.view(np.uint16)[:, :count] >= dropped
        # The bits of 0 and 1 in bfloat16: PyTorch multiplies by booleans four times slower.
        ones = np.multiply(kept, _BF16_ONE, dtype=np.uint16)
        return torch.from_numpy(ones).view(torch.bfloat16).view(shape)


def drop(x: Tensor, p: float, noise: Noise | None = None) -> Tensor:
    """Set a share ``p`` of ``x`` (B, …) to zero and divide the rest by 1 - ``p``.

    Without ``noise`` the mask comes from PyTorch's generator.
    """
    if not p:
        return x
    if noise is None:
        return F.dropout(x, p)
    return x * noise.keep(x.shape, p).to(x.dtype) * (1 / (1 - p))


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, p: float, noise: Noise) -> Tensor:
    """Causal attention of (B, H, T, D) queries, keys and values with dropout on its weights.

    Scores and softmax are computed in float32 or better, the other products in the dtype of ``q``.
    """
    with torch.autocast(q.device.type, enabled=False):
        out: Tensor = _Attention.apply(q, k, v, scale, p, noise)  # type: ignore[no-untyped-call]
    return out


def _strips(B: int, H: int, T: int) -> Iterator[tuple[slice, int, int]]:
    """Yield (group of sequences, first query, end of queries) for every strip of every group."""
    size = max(1, _SCORES // (H * min(_STRIP, T) * T))
    for b in range(0, B, size):
        for i in range(0, T, _STRIP):
            yield slice(b, min(b + size, B)), i, min(i + _STRIP, T)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, p: float, noise: Noise
    ) -> Tensor:
        B, H, T, D = q.shape
        q, k, v = (t.reshape(B * H, T, D) for t in (q, k, v))
        exact = torch.promote_types(q.dtype, torch.float32)
        future = torch.full((_STRIP, _STRIP), -math.inf, dtype=exact).triu(1)
        out = torch.empty_like(q)
        kept = []
        for group, i, j in _strips(B, H, T):
            rows = slice(group.start * H, group.stop * H)
            scores = torch.bmm(q[rows, i:j].to(exact), k[rows, :j].to(exact).transpose(1, 2))
            scores.mul_(scale)[..., i:j].add_(future[: j - i, : j - i])
            weights = scores.softmax(-1).to(q.dtype)
            keep = noise.keep(weights.shape, p, group).to(q.dtype)
            torch.mul(torch.bmm(weights * keep, v[rows, :j]), 1 / (1 - p), out=out[rows, i:j])
            kept += [weights, keep]
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.shape, ctx.scale, ctx.p = (B, H, T, D), scale, p
        return out.view(B, H, T, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *kept = ctx.saved_tensors
        B, H, T, _ = ctx.shape
        grad = grad.reshape(q.shape)
        # Softmax backward: for each query, Σ_j weight·∂loss/∂weight equals output · gradient.
        exact = torch.promote_types(q.dtype, torch.float32)
        mean = (grad * out).sum(-1, keepdim=True, dtype=exact).to(q.dtype)
        grad = grad * (1 / (1 - ctx.p))
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        pairs = zip(kept[::2], kept[1::2], strict=True)
        for (group, i, j), (weights, keep) in zip(_strips(B, H, T), pairs, strict=True):
            rows = slice(group.start * H, group.stop * H)
            mine = grad[rows, i:j]
            of_v[rows, :j] += torch.bmm((weights * keep).transpose(1, 2), mine)
            scores = torch.bmm(mine, v[rows, :j].transpose(1, 2)).mul_(keep)
            scores.sub_(mean[rows, i:j]).mul_(weights)
            of_q[rows, i:j] = torch.bmm(scores, k[rows, :j])
            of_k[rows, :j] += torch.bmm(scores.transpose(1, 2), q[rows, i:j])
        of_q *= ctx.scale
        of_k *= ctx.scale
        return of_q.view(ctx.shape), of_k.view(ctx.shape), of_v.view(ctx.shape), None, None, None
