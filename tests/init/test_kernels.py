from __future__ import annotations

import math

import pytest
import torch

from nanogpt_cli.init import kernels
from nanogpt_cli.model.mlp import ACTIVATIONS

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(("q", "value"), [(0.1024, 0.02987), (0.3072, 0.10649), (0.64, 0.25349)])
def test_gelu_second_moment_at_the_values_of_three_widths(q: float, value: float) -> None:
    assert kernels.gelu_second_moment(q) == pytest.approx(value, abs=6e-6)
    assert kernels.second_moment("gelu", q) == pytest.approx(value, abs=6e-6)


def grid_pair(q1: float, q2: float, rho: float) -> tuple[torch.Tensor, ...]:
    """Two correlated Gaussians on a grid of quadrature points, and the weights."""
    z = torch.linspace(-9, 9, 1501, dtype=torch.float64)
    w = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    a, b = torch.meshgrid(z, z, indexing="ij")
    x = math.sqrt(q1) * a
    y = math.sqrt(q2) * (rho * a + math.sqrt(1 - rho * rho) * b)
    return x, y, w[:, None] * w


@pytest.mark.parametrize("activation", sorted(set(kernels.KERNELS) - {"swiglu"}))
@pytest.mark.parametrize("rho", [-0.5, 0.3, 0.9])
def test_kernels_agree_with_numerical_integration(activation: str, rho: float) -> None:
    """E[φφ] and E[φ′φ′] by a two-dimensional integral of the model's own activation."""
    q = 0.6
    x, y, w = grid_pair(q, q, rho)
    phi = ACTIVATIONS[activation]
    x.requires_grad_()
    y.requires_grad_()
    (dx,) = torch.autograd.grad(phi(x).sum(), x)
    (dy,) = torch.autograd.grad(phi(y).sum(), y)
    R = torch.tensor([[q, rho * q], [rho * q, q]], dtype=torch.float64)
    value, slope = kernels.KERNELS[activation](R)
    x, y = x.detach(), y.detach()
    tolerance = 2e-3 if activation.startswith("relu") else 1e-6  # the grid sees a kink
    assert float(value[0, 1]) == pytest.approx(float((w * phi(x) * phi(y)).sum()), abs=tolerance)
    assert float(slope[0, 1]) == pytest.approx(float((w * dx * dy).sum()), abs=tolerance)


def test_gelu_takes_unequal_variances() -> None:
    x, y, w = grid_pair(0.3, 0.9, 0.5)
    r = 0.5 * math.sqrt(0.3 * 0.9)
    value, _ = kernels.gelu(torch.tensor([[0.3, r], [r, 0.9]], dtype=torch.float64))
    phi = ACTIVATIONS["gelu"]
    assert float(value[0, 1]) == pytest.approx(float((w * phi(x) * phi(y)).sum()), abs=1e-6)
