"""Products by oneDNN against ``F.linear``, their slow twin."""

from __future__ import annotations

import threading

import pytest
import torch
from numerics import tolerance
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from nanogpt_cli.machine import products
from nanogpt_cli.machine.device import Device

pytestmark = pytest.mark.numeric

needs_onednn = pytest.mark.skipif(not products.available(), reason="PyTorch has no oneDNN here")


def drawn(shape: tuple[int, ...], out: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, weight, bias, and the gradient of the outputs."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=random, requires_grad=True)
    weight = torch.randn(out, shape[-1], generator=random, requires_grad=True)
    bias = torch.randn(out, generator=random, requires_grad=True)
    return x, weight, bias, torch.randn((*shape[:-1], out), generator=random)


def is_onednn(found: Tensor) -> bool:
    return type(found.grad_fn).__name__ == "_LinearBackward"


@needs_onednn
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 7, 24), (5, 16), (1, 1, 8), (2, 3, 4, 8)])
@pytest.mark.parametrize("out", [8, 65])
def test_values_and_gradients_are_those_of_linear(
    shape: tuple[int, ...], out: int, with_bias: bool
) -> None:
    """More rows than columns and fewer: the gradient of the weight is computed in two ways."""
    x, weight, bias, upstream = drawn(shape, out)
    given = [x, weight, bias] if with_bias else [x, weight]
    with products.fast():
        found = products.linear(*given)
    assert is_onednn(found)
    expected = F.linear(*given)
    rows = x.numel() // shape[-1]
    # Every value is a sum over channels, outputs or rows of products of two drawn values.
    atol = tolerance(max(rows, out, shape[-1]) + 1, 20.0 * max(rows, out, shape[-1]))
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    ours, theirs = (torch.autograd.grad(y, given, upstream) for y in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@needs_onednn
def test_whoever_needs_no_gradient_of_the_inputs_pays_for_none() -> None:
    x, weight, _, upstream = drawn((4, 8), 6)
    with products.fast():
        found = products.linear(x.detach(), weight)
    (of_weight,) = torch.autograd.grad(found, [weight], upstream)
    torch.testing.assert_close(of_weight, upstream.T @ x, rtol=0, atol=tolerance(5, 80.0))


@needs_onednn
def test_a_gradient_of_the_gradient_is_linears() -> None:
    found = []
    for fast in (True, False):
        x, weight, bias, _ = drawn((6, 8), 4)
        if fast:
            with products.fast():
                y = products.linear(x, weight, bias)
        else:
            y = F.linear(x, weight, bias)
        (first,) = torch.autograd.grad(y.square().sum(), [weight], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, weight]))
    for one, other in zip(*found, strict=True):
        largest = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance(6 * 8 * 4, 4 * largest))


@needs_onednn
def test_a_run_in_float32_on_a_cpu_turns_them_on_for_its_own_thread() -> None:
    x, weight, _, _ = drawn((4, 8), 6)

    def device(**changes: object) -> Device:
        values = {"device": torch.device("cpu"), "precision": "fp32", "compile": False}
        return Device(**(values | changes), name="", peak_flops=None, notes=())  # type: ignore[arg-type]

    with device().autocast():
        assert is_onednn(products.linear(x, weight))
        elsewhere: list[Tensor] = []
        other = threading.Thread(target=lambda: elsewhere.append(products.linear(x, weight)))
        other.start()
        other.join(60)
        assert not is_onednn(elsewhere[0])
        with device().autocast():
            pass
        assert is_onednn(products.linear(x, weight))
    assert not is_onednn(products.linear(x, weight))
    for changes in ({"precision": "bf16"}, {"compile": True}):
        with device(**changes).autocast():
            assert not is_onednn(products.linear(x, weight))


def test_other_tensors_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, _ = drawn((4, 8), 6)
    with products.fast():
        for a, b in ((x.double(), weight.double()), (x.to("meta"), weight.to("meta"))):
            assert not is_onednn(products.linear(a, b))
        assert products.linear(x[:0], weight).shape == (0, 6)
        assert products.linear(x, weight[:0]).shape == (4, 0)
        (of_x,) = torch.autograd.grad(products.linear(x[0], weight, bias).sum(), [x])
        torch.testing.assert_close(of_x[0], weight.sum(0), rtol=0, atol=tolerance(7, 40.0))
        with FakeTensorMode():
            assert not is_onednn(products.linear(torch.ones(2, 8), torch.ones(6, 8)))
        monkeypatch.setattr(products, "available", lambda: False)
        assert torch.equal(products.linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("wide", [False, True])
def test_a_product_without_gradient_is_that_of_float64(
    wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wide and not products.available():
        pytest.skip("PyTorch has no oneDNN here")
    monkeypatch.setattr(products, "wide", lambda: wide)
    x, weight, bias, _ = (t.detach() for t in drawn((2, 9, 40), 65))
    found = products.forward(x, weight, bias)
    exact = F.linear(x.double(), weight.double(), bias.double())
    # A sum of n products: each of n roundings is at most eps of the sum of sizes.
    size = x.abs().double() @ weight.abs().double().T + bias.abs()
    eps = torch.finfo(torch.float32).eps
    assert bool(((found - exact).abs() <= (x.shape[-1] + 1) * eps * size).all())
    assert torch.equal(
        products.forward(x.double(), weight.double()), F.linear(x.double(), weight.double())
    )


@needs_onednn
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 9, 16, 70])
@pytest.mark.parametrize(("out", "inputs"), [(65, 40), (1, 3), (37, 130), (16, 16)])
def test_a_weight_in_onednns_order_is_the_weight(
    rows: int, out: int, inputs: int, with_bias: bool
) -> None:
    x, weight, bias, _ = (t.detach() for t in drawn((2, rows, inputs), out))
    copy = products.ordered(weight)
    assert copy is not None
    found = products.by_ordered(x, copy, bias if with_bias else None)
    exact = F.linear(x.double(), weight.double(), bias.double() if with_bias else None)
    # A sum of n products: each of n roundings is at most eps of the sum of sizes.
    size = x.abs().double() @ weight.abs().double().T + bias.abs()
    eps = torch.finfo(torch.float32).eps
    assert bool(((found - exact).abs() <= (inputs + 1) * eps * size).all())
    weight.zero_()  # the copy shares nothing
    assert torch.equal(products.by_ordered(x, copy, bias if with_bias else None), found)


def test_without_onednn_there_are_no_copies_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_orders", lambda: False)
    assert products.ordered(torch.ones(2, 2)) is None
