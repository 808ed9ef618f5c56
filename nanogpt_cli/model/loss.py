"""Cross-entropy of a linear head, without all logits at once where there are many.

At 32 × 1024 positions and GPT-2's 50,304 rows the logits alone are 6.6 GB in float32, and backward
needs as much again. Where there are many, the head therefore works on some positions at a time and
computes the gradient while it has their logits; backward only scales it. ``plain`` is the slow
twin.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt_cli.machine import products

# A target that is not counted.
IGNORED = -1
# Logits that may exist at once. Each piece adds to the whole gradient of the head, which costs as
# much as the products of some hundred positions, so pieces are large. On CPUs they save memory
# alone (a head of 2,048 positions took a fifth longer), on GPUs reading and writing it as well.
_AT_ONCE = {"cpu": 1 << 27, "cuda": 1 << 28}


def mean(x: Tensor, weight: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
    """Mean cross-entropy in nats, a scalar.

    Args:
        x: (B, T, C), what the head is given.
        weight: (V, C) of the head.
        targets: (B, T) ids; ``IGNORED`` is not counted.
        scale: of the logits.
    """
    rows = _rows(x, weight)
    if not rows:
        return plain(x, weight, targets, scale)
    found: Tensor = _InPieces.apply(  # type: ignore[no-untyped-call]
        x, weight, targets, scale, rows
    )
    return found


def plain(x: Tensor, weight: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
    """``mean`` with all logits at once."""
    logits = _logits(x, weight, scale)
    return F.cross_entropy(
        logits.view(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORED
    )


def each(x: Tensor, weight: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
    """The cross-entropy of every target, float32 (B, T); without gradients."""
    rows = _rows(x, weight) or targets.numel()
    found = [
        F.cross_entropy(_logits(some, weight, scale).float(), wanted, reduction="none")
        for some, wanted in zip(
            torch.split(x.flatten(0, 1), rows), torch.split(targets.flatten(), rows), strict=True
        )
    ]
    return torch.cat(found).view(targets.shape)


def logits_at_once(device: torch.device, positions: int, vocab_size: int) -> int:
    """How many logits of so many positions exist at one time, for forecasts of memory."""
    return min(positions * vocab_size, max(vocab_size, _at_once(device)))


def _rows(x: Tensor, weight: Tensor) -> int:
    """Positions to work on at once; 0 for all of them, plainly."""
    positions, V = x.shape[0] * x.shape[1], weight.shape[0]
    pieces = -(-positions * V // _at_once(x.device))
    return -(-positions // pieces) if pieces > 1 else 0


def _at_once(device: torch.device) -> int:
    return _AT_ONCE["cpu" if device.type == "cpu" else "cuda"]


def _logits(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    logits = products.linear(x, weight)
    return logits if scale == 1.0 else logits * scale


class _InPieces(torch.autograd.Function):
    """``mean`` whose forward pass computes the gradient of each piece beside its loss."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, scale: float, rows: int
    ) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        table = weight.detach().to(dtype)
        ids = torch.arange(weight.shape[0], device=x.device)
        positions, wanted = x.detach().flatten(0, 1), targets.flatten()
        # The share of one target in the mean is left for the end: float16 cannot hold its product
        # with a probability, and a scaled loss scales what comes later.
        share = (wanted != IGNORED).sum().reciprocal()
        total = torch.zeros((), device=x.device)
        towards_x = []
        towards_weight = torch.zeros_like(weight, dtype=torch.float32)
        for some, goal in zip(torch.split(positions, rows), torch.split(wanted, rows), strict=True):
            some = some.to(dtype)
            logits = (some @ table.mT).float()  # (rows, V)
            if scale != 1.0:
                logits = logits * scale
            counted = goal != IGNORED
            everything = logits.logsumexp(-1)
            chosen = logits.gather(-1, goal.clamp(min=0)[:, None])[:, 0]
            total = total + ((everything - chosen) * counted).sum()
            p = (logits - everything[:, None]).exp()
            p = torch.where(ids == goal[:, None], p - 1, p)
            towards_logits = (p * counted[:, None]).to(dtype)
            towards_x.append(towards_logits @ table)
            towards_weight += towards_logits.mT @ some
        ctx.save_for_backward(torch.cat(towards_x).view(x.shape), towards_weight, share * scale)
        ctx.dtypes = x.dtype, weight.dtype
        return total * share

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        towards_x, towards_weight, share = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        grad = grad * share
        return towards_x.to(of_x) * grad, (towards_weight * grad).to(of_weight), None, None, None
