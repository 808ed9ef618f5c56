"""Muon against PyTorch's own and against the formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from numerics import tolerance
from torch import Tensor

from nanogpt_cli.training.optimizers import newton_schulz
from nanogpt_cli.training.optimizers.muon import Muon
from nanogpt_cli.training.optimizers.newton_schulz import orthogonalize, polynomials

pytestmark = pytest.mark.numeric

SETTINGS = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1, "ns_steps": 5}
JORDAN = ((3.4445, -4.7750, 2.0315),) * 5


def reference(
    w: Tensor, grads: list[Tensor], schedule: Sequence[newton_schulz.Polynomial] = polynomials(5)
) -> Tensor:
    """Jordan et al. 2024 with some polynomials, one matrix, in float64."""
    w = w.double().clone()
    buffer = torch.zeros_like(w)
    for g in grads:
        buffer = 0.95 * buffer + 0.05 * g.double()
        x = 0.05 * g.double() + 0.95 * buffer
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / (1.02 * x.norm() + 1e-7)
        for a, b, c in schedule:
            s = x @ x.T
            x = a * x + (b * s + c * s @ s) @ x
        x = x.T if tall else x
        w = w * (1 - 0.02 * 0.1) - 0.02 * math.sqrt(max(1, w.shape[0] / w.shape[1])) * x
    return w


def rounding(
    schedule: Sequence[newton_schulz.Polynomial], terms: int, magnitude: float = 1.0
) -> float:
    """What products over ``terms`` leave where a matrix is nearly singular, which each of the
    polynomials raises by its slope at zero."""
    return tolerance(terms, magnitude * math.prod(slope for slope, _, _ in schedule))


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_equals_the_formulas_in_float64_and_torch_within_bfloat16(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape) * 0.1
    grads = [torch.randn(shape) for _ in range(4)]
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    mine = Muon([ours], **SETTINGS, schedule=JORDAN)
    torchs = torch.optim.Muon([theirs], **SETTINGS, nesterov=True)
    for g in grads:
        ours.grad, theirs.grad = g.clone(), g.clone()
        mine.step()
        torchs.step()
    exact = reference(start, grads, JORDAN)
    assert (ours.double() - exact).abs().max() < 2e-6
    # PyTorch iterates in bfloat16 (8 bits): four steps of lr 0.02 with entries of some 0.3.
    moved = (exact - start).norm()
    assert (theirs.double() - exact).norm() / moved < 0.05
    assert (theirs.double() - ours.double()).norm() / moved < 0.05


def test_singular_values_end_near_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 32, 64)
    for steps, error in ((3, 0.9), (5, 0.13), (6, 0.01), (9, 0.001)):
        values = torch.linalg.svdvals(orthogonalize(x, steps, torch.float32))
        assert (values - 1).abs().max() < error


@pytest.mark.parametrize("steps", [3, 5, 6, 9])
@pytest.mark.parametrize("size", [2, 8, 16, 64, 128])
def test_rounding_to_bfloat16_does_not_throw_singular_values_away(size: int, steps: int) -> None:
    """Not even of what lies at the steep ends of the polynomials' intervals."""
    torch.manual_seed(0)
    gaussian = torch.randn(256 if size < 64 else 32, size, size)
    u, _, v = torch.linalg.svd(gaussian)
    spread = torch.logspace(0, -3, size)
    highest = 1.0
    for a, b, c in polynomials(steps, wider=newton_schulz._WIDER_IN_HALF):
        x = torch.linspace(1e-4, highest, 10_001, dtype=torch.float64)
        highest = float((a * x + b * x**3 + c * x**5).max())
    for kind in (gaussian, u @ v, (u * spread) @ v):
        values = torch.linalg.svdvals(orthogonalize(kind, steps, torch.bfloat16).float())
        # Rounding comes with each factor of the last product, and the polynomial there is flat.
        assert values.max() < highest * (1 + 8 * torch.finfo(torch.bfloat16).eps)


def test_each_polynomial_is_the_best_one_for_what_the_last_one_left() -> None:
    """Chebyshev: an odd quintic is best when its error takes its largest value four times."""
    low, high = 1e-3, 1.0
    for a, b, c in polynomials(6):
        x = torch.linspace(low, high, 200_001, dtype=torch.float64)
        error = a * x + b * x**3 + c * x**5 - 1
        worst = float(error.abs().max())
        signs = [float(s) for s in error[error.abs() > worst * (1 - 1e-6)].sign()]
        changes = [s for i, s in enumerate(signs) if i == 0 or s != signs[i - 1]]
        assert changes == [-1, 1, -1, 1]
        low, high = 1 - worst, 1 + worst
    assert high < 1.001
    # The paper's own first polynomial, made for the same interval with a little room.
    assert polynomials(1)[0] == pytest.approx((8.29, -23.6, 17.3), rel=0.1)


def test_projections_of_query_key_and_value_are_three_matrices() -> None:
    torch.manual_seed(0)
    start, grad = torch.randn(24, 8), torch.randn(24, 8)
    grad[8:16] *= 100  # must not drown its neighbours
    whole = torch.nn.Parameter(start.clone())
    whole.grad = grad.clone()
    Muon([{"params": [whole], "split": 3}], **SETTINGS).step()
    for i in range(3):
        rows = slice(8 * i, 8 * i + 8)
        error = (whole[rows].double() - reference(start[rows], [grad[rows]])).abs().max()
        assert error < rounding(polynomials(5), 8, SETTINGS["lr"])


def test_a_parameter_without_gradient_stays() -> None:
    p = torch.nn.Parameter(torch.ones(4, 4))
    Muon([p], **SETTINGS).step()
    assert torch.equal(p, torch.ones(4, 4))


@pytest.mark.parametrize("schedule", [JORDAN, polynomials(3), polynomials(6)])
@pytest.mark.parametrize("rank", [8, 32])
def test_the_way_through_gram_matrices_agrees_with_the_plain_one(
    rank: int, schedule: Sequence[newton_schulz.Polynomial]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 32, rank) @ torch.randn(3, rank, 128) + 1e-3 * torch.randn(3, 32, 128)
    y = x / x.norm(dim=(-2, -1), keepdim=True)
    exact = newton_schulz._plainly(y.double(), schedule)
    for way in (newton_schulz._plainly, newton_schulz._by_gram):
        error = (way(y, schedule) - exact).norm() / exact.norm()
        assert error < rounding(schedule, 32)


def test_matrices_shared_out_to_threads_change_alike() -> None:
    shapes = [(24, 8), (24, 8), (8, 8), (8, 8), (8, 8), (8, 32)]
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in shapes]
    found = []
    for n_parts in (1, 3):
        torch.manual_seed(1)
        params = [torch.nn.Parameter(w.clone()) for w in start]
        optimizer = Muon([{"params": params[:2], "split": 3}, {"params": params[2:]}], **SETTINGS)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step(n_parts)
        found.append(params)
    for p, q, w in zip(*found, start, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
        assert not torch.equal(p, w)
