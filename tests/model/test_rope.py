"""Rotary positions: a rotation of planes, and the CPU's way of computing it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nanogpt_cli.model.rope import rotation, turned

pytestmark = pytest.mark.numeric


def by_complex_numbers(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Channels i and i + D/2 as one complex number, times exp(i · position · frequency)."""
    D = x.shape[-1]
    a, b = x.double().chunk(2, -1)
    angles = positions[:, None] / theta ** (torch.arange(0, D, 2) / D).double()
    z = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((z.real, z.imag), -1)


@pytest.mark.parametrize("theta", [100.0, 1e6])
@pytest.mark.parametrize("transposed", [False, True])
def test_it_is_multiplication_with_a_complex_number(theta: float, transposed: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 3, 10).transpose(1, 2) if transposed else torch.randn(2, 3, 7, 10)
    positions = torch.arange(5, 12)
    x.requires_grad_()
    expected = by_complex_numbers(x, positions, theta)
    found = turned(x, rotation(positions, 10, theta))
    # Angles up to 12 are rounded in float32, each to 5e-7.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    upstream = torch.randn_like(found)
    (ours,) = torch.autograd.grad(found, x, upstream)
    (theirs,) = torch.autograd.grad(expected, x, upstream.double())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_lengths_stay_and_half_precision_is_rounded_once() -> None:
    torch.manual_seed(0)
    x, by = torch.randn(4, 6, 8), rotation(torch.arange(6), 8, 1e4)
    torch.testing.assert_close(turned(x, by).norm(dim=-1), x.norm(dim=-1))
    half = x.bfloat16()
    assert torch.equal(turned(half, by), turned(half.float(), by).bfloat16())
    assert turned(x, None) is x
