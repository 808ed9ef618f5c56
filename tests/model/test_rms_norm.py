"""The CPU's own RMSNorm equals PyTorch's composition of operations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nanogpt_cli.model.rms_norm import _Eager, rms_norm

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("shape", [(3, 5, 24), (1, 7), (2, 3, 4, 1)])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_values_and_gradients_are_pytorchs(shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * scale).requires_grad_()
    weight, upstream = torch.randn(shape[-1], requires_grad=True), torch.randn(shape)
    found, expected = rms_norm(x, weight, 1e-5), F.rms_norm(x, weight.shape, weight, 1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(y, (x, weight), upstream) for y in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 / scale)


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _Eager.apply(x, w, 0.1), (x, weight))


def test_half_precision_is_rounded_once() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 16).bfloat16(), torch.randn(16)
    found = rms_norm(x, weight, 1e-5)
    assert torch.equal(found, F.rms_norm(x.float(), (16,), weight, 1e-5).bfloat16())


def test_a_row_of_zeros_stays_finite() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_norm(x, torch.ones(8), 1e-5)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 8))
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
