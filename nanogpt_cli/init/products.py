"""Products of activations with weights, by the faster of the two libraries that PyTorch has.

oneDNN uses AVX-512 on every processor that has it. MKL, which PyTorch takes for dense float32
tensors, uses AVX2 on AMD's, and then takes twice as long.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b for float32 x (…, in), W (out, in), b (out,): (…, out), differentiable in x.

    An input in oneDNN's layout sends ``F.linear`` and its gradient there. Input and output are
    copied, which are small beside the weight; that is read where it lies.
    """
    if not _has_wide_onednn():
        return F.linear(x, weight, bias)
    return F.linear(x.to_mkldnn(), weight, bias).to_dense()


def _has_wide_onednn() -> bool:
    """Whether oneDNN computes with AVX-512. With AVX2 it gained 8 % forward and lost backward."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class Linear(nn.Module):
    """An ``nn.Linear``, with its parameters, that computes with ``linear``."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        return linear(x, self.weight, self.bias)
