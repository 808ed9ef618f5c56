"""The head's loss in pieces against all logits at once, and against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from numerics import tolerance
from torch import Tensor
from torch.nn import functional as F

from nanogpt_cli.model import loss

pytestmark = pytest.mark.numeric

_B, _T, _C, _V = 3, 7, 24, 50


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, table and targets, three of which are ignored."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(_B, _T, _C, generator=random)
    weight = torch.randn(_V, _C, generator=random) / _C**0.5
    targets = torch.randint(_V, (_B, _T), generator=random)
    targets[0, :2] = targets[2, 6] = loss.IGNORED
    return x, weight, targets


def with_gradients(
    of: Callable[..., Tensor], scale: float, dtype: torch.dtype | None = None
) -> list[Tensor]:
    x, weight, targets = drawn()
    x.requires_grad_()
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        found = of(x, weight, targets, scale)
    (3 * found).backward()
    assert x.grad is not None
    assert weight.grad is not None
    return [found.detach(), x.grad, weight.grad]


def _rounding(values: Tensor) -> float:
    """What the order of adding can make of products over channels, rows of the table, positions."""
    return tolerance(_C + _V + _B * _T, float(values.abs().max()))


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("pieces", [2, 4, 21])
def test_pieces_give_the_plain_loss_and_gradients(
    monkeypatch: pytest.MonkeyPatch, pieces: int, scale: float
) -> None:
    """Two pieces are uneven; 21 are of one position each."""
    monkeypatch.setitem(loss._AT_ONCE, "cpu", _B * _T * _V // pieces)
    ours, theirs = (with_gradients(way, scale) for way in (loss.mean, loss.plain))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=_rounding(other))


def test_pieces_in_bfloat16_are_as_near_as_its_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss._AT_ONCE, "cpu", _B * _T * _V // 4)
    ours, theirs = (with_gradients(way, 1.0, torch.bfloat16) for way in (loss.mean, loss.plain))
    exact = with_gradients(loss.plain, 1.0)
    for one, other, true in zip(ours, theirs, exact, strict=True):
        assert one.dtype == torch.float32
        of_plain = (other - true).abs().max()
        assert (one - true).abs().max() <= 3 * of_plain + _rounding(true)


def test_few_logits_are_computed_plainly() -> None:
    """The bits of models with small vocabularies stay what they were."""
    for ours, theirs in zip(
        with_gradients(loss.mean, 1.0), with_gradients(loss.plain, 1.0), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("pieces", [1, 4])
def test_each_target_has_its_own_loss(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    x, weight, targets = drawn()
    targets = targets.clamp(min=0)
    monkeypatch.setitem(loss._AT_ONCE, "cpu", _B * _T * _V // pieces)
    wanted = F.cross_entropy((x @ weight.T).flatten(0, 1), targets.flatten(), reduction="none")
    found = loss.each(x, weight, targets)
    torch.testing.assert_close(found.flatten(), wanted, rtol=0, atol=_rounding(wanted))


def test_the_forecast_knows_how_many_logits_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert loss.logits_at_once(cpu, 10, _V) == 10 * _V
    monkeypatch.setitem(loss._AT_ONCE, "cpu", 4 * _V)
    assert loss.logits_at_once(cpu, 10, _V) == 4 * _V
    monkeypatch.setitem(loss._AT_ONCE, "cpu", 1)
    assert loss.logits_at_once(cpu, 10, _V) == _V


def test_small_probabilities_survive_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,048 positions and 20,000 words, their share in a mean is less than float16 can hold.

    The loss is scaled, as in training, but only after the pieces have their gradients. Over all
    words a position's gradient adds up to nothing; without its probabilities the target is left.
    """
    random = torch.Generator().manual_seed(0)
    x = 1 + torch.randn(1, 2048, _C, generator=random)
    table = (0.01 * torch.randn(20_000, _C, generator=random)).requires_grad_()
    targets = torch.randint(20_000, (1, 2048), generator=random)
    monkeypatch.setitem(loss._AT_ONCE, "cpu", 1 << 22)
    with torch.autocast("cpu", dtype=torch.float16):
        scaled = 65536.0 * loss.mean(x, table, targets)
    scaled.backward()
    assert table.grad is not None
    target_alone = 65536.0 * x.mean((0, 1))
    assert (table.grad.sum(0).abs() < 0.02 * target_alone).all()
