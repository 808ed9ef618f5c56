from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanogpt_cli import recipe, schemes
from nanogpt_cli.init.drawing import build, configure
from nanogpt_cli.init.theory import random_tokens
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.training.optim import Optimizers
from nanogpt_cli.training.studies.sharpness import sharpness

# Small enough for its whole Hessian: 404 parameters.
CONFIG = GPTConfig(1, 2, 4, 6, 10, 0.0, True, "gelu")


def made(scheme: str, eps: float) -> tuple[GPT, Optimizers]:
    config = configure(CONFIG, schemes.get(scheme))
    model = build(config, schemes.get(scheme), 0).double()
    settings = recipe.Optim(warmup_steps=0, eps=eps)
    return model, Optimizers(model, settings, schemes.get(scheme), max_steps=10)


def hessian(model: GPT, idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (n,) and Hessian (n, n) of the loss, by as many backward passes as parameters."""
    params = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        _, loss = model(idx, targets)
        first = torch.autograd.grad(loss, params, create_graph=True)
        flat = torch.cat([g.flatten() for g in first])
        rows = [torch.autograd.grad(x, params, retain_graph=True) for x in flat]
    return flat.detach(), torch.stack([torch.cat([r.flatten() for r in row]) for row in rows])


@pytest.mark.numeric
@pytest.mark.parametrize("scheme", ["lecun", "mup"])
def test_it_is_the_largest_eigenvalue_of_the_whole_preconditioned_hessian(scheme: str) -> None:
    model, optimizers = made(scheme, eps=1e-3)
    idx, targets = random_tokens(CONFIG, 2, 6, seed=0)
    g, H = hessian(model, idx, targets)
    factors = {
        optimizers.names[p]: group["lr_scale"]
        for group in optimizers.members[0].param_groups
        for p in group["params"]
    }
    rate = torch.cat(
        [torch.full((p.numel(),), factors[n]).double() for n, p in model.named_parameters()]
    )
    root = (rate / (g.abs() + 1e-3)).sqrt()
    exact = float(torch.linalg.eigvalsh(root[:, None] * H * root)[-1])
    found = sharpness(model, optimizers, [(idx, targets)], products=40)
    assert found.value == pytest.approx(exact, rel=1e-6)
    assert found.limit == pytest.approx(38 / exact, rel=1e-6)
    pairs = pairwise(found.estimates)
    assert all(b >= a - 1e-9 * exact for a, b in pairs)  # from below
    ten = sharpness(model, optimizers, [(idx, targets)])
    assert ten.value == pytest.approx(exact, rel=1e-3)


def test_several_batches_average_the_squares_of_their_gradients() -> None:
    model, optimizers = made("lecun", eps=1e-3)
    batches = [random_tokens(CONFIG, 2, 6, seed=s) for s in range(3)]
    squares = sum(hessian(model, *b)[0].square() for b in batches) / 3
    assert isinstance(squares, Tensor)
    _, H = hessian(model, *batches[0])
    root = (squares.sqrt() + 1e-3).rsqrt()
    exact = float(torch.linalg.eigvalsh(root[:, None] * H * root)[-1])
    found = sharpness(model, optimizers, batches, products=40)
    assert found.value == pytest.approx(exact, rel=1e-6)


def test_adam_on_a_quadratic_is_stable_below_the_limit_and_not_above() -> None:
    """38/η at β₁ = 0.9, here found by stepping: Adam's momentum with its preconditioner fixed."""
    for share, stable in ((0.95, True), (1.05, False)):
        x, m, eta = 1.0, 0.0, share * 38 / 5.0
        for _ in range(2000):
            m = 0.9 * m + 0.1 * 5.0 * x
            x -= eta * m
            if abs(x) > 1e6:
                break
        assert (abs(x) < 1) == stable
