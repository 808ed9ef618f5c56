"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), with a gradient of its own on CPUs.

PyTorch has no fused kernel for it there: forward and backward pass of (12, 64, 128) took 0.60 ms in
separate operations, 0.33 ms here, and 0.22 ms as a LayerNorm (2026-11-29, one core, torch 2.13).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Division by the root mean square of the last dimension, and a gain for each channel."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """See ``rms_norm``."""
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` (..., C) divided by √(mean square + eps), times ``weight`` (C,).

    It is computed in float32 at least and has the dtype of ``x``.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    given, gain = x.to(exact), weight.to(exact)
    eager = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if eager and x.device.type == "cpu":
        found: Tensor = _Eager.apply(given, gain, eps)  # type: ignore[no-untyped-call]
    else:
        found = F.rms_norm(given, gain.shape, gain, eps)
    return found.to(x.dtype)


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        C = x.shape[-1]
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().mul_(1 / C)
        factor = mean_square.add_(eps).rsqrt_()  # (..., 1)
        normed = x * factor
        ctx.save_for_backward(normed, factor, weight)
        out: Tensor = normed * weight
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, factor, weight = ctx.saved_tensors
        of_weight = (grad * normed).flatten(0, -2).sum(0)
        grad = grad * weight
        along = torch.linalg.vecdot(grad, normed).mul_(1 / grad.shape[-1])[..., None]
        return torch.addcmul(grad, normed, along, value=-1).mul_(factor), of_weight, None
