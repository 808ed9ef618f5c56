from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nanogpt_cli.init import products

EPS = torch.finfo(torch.float32).eps
pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(2, 40, 64, 192), (1, 1, 7, 3), (3, 5, 256, 64)])
def test_a_product_and_its_gradient_are_those_of_float64(
    shape: tuple[int, int, int, int], bias: bool, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wide and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "_has_wide_onednn", lambda: wide)
    B, T, C, rows = shape
    rng = torch.Generator().manual_seed(0)
    plain = nn.Linear(C, rows, bias=bias).requires_grad_(False)
    for parameter in plain.parameters():
        parameter.normal_(generator=rng)
    x = torch.randn(B, T, C, generator=rng).requires_grad_()
    g = torch.randn(B, T, rows, generator=rng)
    made = products.Linear(plain)
    assert dict(made.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    y = made(x)
    (back,) = torch.autograd.grad(y, x, g)
    exact = F.linear(x.double(), plain.weight.double(), plain.bias.double() if bias else None)
    # Sums of n products of sizes |a|·|b|: each of n roundings is at most eps of the sizes' sum.
    size = x.abs().double() @ plain.weight.abs().double().T
    size = size + (plain.bias.abs() if bias else 0)
    assert bool(((y - exact).abs() <= (C + 1) * EPS * size).all())
    exact = g.double() @ plain.weight.double()
    size = g.abs().double() @ plain.weight.abs().double()
    assert bool(((back - exact).abs() <= rows * EPS * size).all())
