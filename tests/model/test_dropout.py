"""Noise belongs to a sequence of a step; dropped attention agrees with its formula."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import toy_run
from torch import Tensor

from nanogpt_cli.model import dropout
from nanogpt_cli.model.dropout import Noise
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training import setup
from nanogpt_cli.training.spec import resolve
from nanogpt_cli.training.stepper import Stepper

pytestmark = pytest.mark.numeric

P = 0.2
SCALE = 0.3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    return toy_run.data(tmp_path_factory.mktemp("data"))


def stepper(data: TokenData, **train: object) -> Stepper:
    recipe = toy_run.recipe(model={"dropout": P}, train={"batch_size": 4, **train})
    return setup.assemble(resolve(recipe, data))


def qkv(B: int, H: int, T: int, D: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    drawn = (torch.randn(B, H, T, D).bfloat16() for _ in range(3))  # the same in every format
    return [t.to(dtype).requires_grad_() for t in drawn]


def slow_twin(q: Tensor, k: Tensor, v: Tensor, noise: Noise) -> Tensor:
    """The formula on whole matrices, with the decisions asked for in the order of the strips."""
    B, H, T, _ = q.shape
    keep = torch.zeros(B * H, T, T, dtype=q.dtype)
    for i in range(0, T, dropout._STRIP):
        j = min(T, i + dropout._STRIP)
        keep[:, i:j, :j] = noise.keep((B * H, j - i, j), P)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    weights = (q @ k.transpose(2, 3) * SCALE).masked_fill(future, -math.inf).softmax(-1)
    return (weights * keep.view(B, H, T, T) / (1 - P)) @ v


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
def test_the_share_that_is_dropped(p: float) -> None:
    keep = Noise([1, 2, 3]).keep((3, 333, 301), p).double()
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    for one in keep:
        scatter = math.sqrt(p * (1 - p) / one.numel())
        assert abs(one.mean().item() - (1 - p)) < 4.5 * scatter
    same = (keep[0] == keep[1]).double().mean().item()
    chance = p**2 + (1 - p) ** 2
    assert abs(same - chance) < 4.5 * math.sqrt(chance * (1 - chance) / keep[0].numel())


def test_noise_belongs_to_a_sequence() -> None:
    together, first, last = Noise([5, 6, 7, 8]), Noise([5]), Noise([6, 7, 8])
    for shape in ((3, 7), (2, 5, 5), (1,)):
        whole = together.keep((4, *shape), P)
        parts = [first.keep((1, *shape), P), last.keep((3, *shape), P)]
        assert torch.equal(whole, torch.cat(parts))
    rows = [Noise([5, 6, 7, 8]).keep((2, 99), P, slice(2, 4)), Noise([7, 8]).keep((2, 99), P)]
    assert torch.equal(*rows)


def test_what_is_kept_is_scaled_up_and_nothing_is_drawn_for_no_dropout() -> None:
    x = torch.full((2, 5000), 3.0)
    dropped = dropout.drop(x, P, Noise([1, 2]))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 3 / (1 - P)]))
    assert dropped.mean().item() == pytest.approx(3, rel=0.03)
    noise = Noise([1, 2])
    assert dropout.drop(x, 0.0, noise) is x
    assert torch.equal(noise.keep((2, 9), P), Noise([1, 2]).keep((2, 9), P))


@pytest.mark.parametrize("shape", [(3, 2, 5, 4), (3, 2, 128, 8), (5, 2, 300, 8)])
@pytest.mark.parametrize("scores", [1, 2**30])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)],
    ids=str,
)
def test_attention_agrees_with_its_formula(
    shape: tuple[int, int, int, int],
    scores: int,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One sequence at a time and all at once; queries in one strip and in three."""
    monkeypatch.setattr(dropout, "_SCORES", scores)
    seeds = range(shape[0])
    fast, slow = qkv(*shape, dtype), qkv(*shape, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):  # which must not reach the products within
        found = dropout.attend(*fast, scale=SCALE, p=P, noise=Noise(seeds))
    expected = slow_twin(*slow, Noise(seeds))
    upstream = torch.randn(shape).bfloat16()
    of_fast = torch.autograd.grad(found, fast, upstream.to(dtype))
    of_slow = torch.autograd.grad(expected, slow, upstream.double())
    for a, b in zip((found, *of_fast), (expected, *of_slow), strict=True):
        assert a.dtype == dtype
        assert ((a.double() - b).norm() / b.norm()).item() < tolerance


def test_a_step_is_the_same_in_any_micro_batch_and_number_of_parts(data: TokenData) -> None:
    found = []
    for batch_size, parts in ((8, 1), (2, 1), (8, 3)):
        one = stepper(data, batch_size=batch_size, parts=parts)
        assert (one.micro_batch, one.n_parts) == (batch_size, parts)
        measured = one.measure(5)
        found.append((measured, [p.grad for p in one.model.parameters()]))
    (whole, grads), *others = found
    for measured, same in others:
        assert measured.loss == pytest.approx(whole.loss, rel=1e-6)
        for a, b in zip(grads, same, strict=True):
            assert a is not None
            assert b is not None
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_noise_changes_with_the_step_and_the_seed(data: TokenData) -> None:
    def loss(step: int, seed: int) -> float:
        one = stepper(data)
        one.windows = replace(one.windows, seed=seed)
        x, y = one.batch(0, range(4))  # the same windows
        with one.dropout_stream(step, range(4)) as noise:
            return float(one.model(x, y, noise=noise)[1].detach())

    values = [loss(3, 7), loss(3, 7), loss(4, 7), loss(3, 8)]
    assert values[0] == values[1]
    assert len(set(values)) == 3


def test_a_compiled_model_draws_from_pytorchs_generator(data: TokenData) -> None:
    one = stepper(data)
    one.device = replace(one.device, compile=True)
    before = torch.get_rng_state()
    drawn = []
    for step in (3, 3, 4):
        with one.dropout_stream(step, range(4)) as noise:
            assert noise is None
            drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(before, torch.get_rng_state())


def test_evaluation_drops_nothing(data: TokenData) -> None:
    model = stepper(data).model.eval()
    idx = torch.arange(16)[None] % 19
    noise = Noise([1])
    assert torch.equal(model(idx, noise=noise)[0], model(idx)[0])
