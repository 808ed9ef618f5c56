"""Products with weights on a CPU in float32, by oneDNN instead of by the library PyTorch calls.

PyTorch gives float32 products to MKL, which computes with half of the width of an AMD processor's
AVX-512: 110 GFLOP/s on a core where oneDNN reaches 250 (2026-11-30, an AMD EPYC of family 26, torch
2.13). PyTorch has oneDNN's products as well, but calls them for half precision and for Inductor
alone; hence the operator of a private name, and a gradient of our own. ``F.linear`` is the slow
twin, and takes over where that operator is missing.

``Device.autocast`` turns them on, so that a run trains and evaluates with them; so does an
inspection, and ``forward`` where they are ``wide``. A model that somebody looks at calls what
PyTorch calls.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_wanted = threading.local()
_PLAIN = Tensor, nn.Parameter
_ROWS = 16  # that oneDNN is told to expect; its order turned out to be the same for 8 and for 24


class Linear(nn.Linear):
    """``nn.Linear`` by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(x, self.weight, self.bias)


@contextlib.contextmanager
def fast() -> Iterator[None]:
    """Within, ``linear`` computes with oneDNN in this thread."""
    before = getattr(_wanted, "fast", False)
    _wanted.fast = True
    try:
        yield
    finally:
        _wanted.fast = before


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: ``x`` (..., in) times the transposed ``weight`` (out, in), plus ``bias``."""
    if getattr(_wanted, "fast", False) and _takes(x, weight, bias) and available():
        found: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return found
    return F.linear(x, weight, bias)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` of tensors that need no gradient, by oneDNN where that is ``wide``."""
    if wide() and _takes(x, weight, bias):  # without the cost of an autograd function
        return _by_weight(x, weight, bias)
    return F.linear(x, weight, bias)


@functools.cache
def wide() -> bool:
    """Whether oneDNN computes with AVX-512. With AVX2, MKL is as fast for few rows."""
    return available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


@functools.cache
def available() -> bool:
    """Whether this PyTorch has oneDNN and the operator that reaches it."""
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def ordered(weight: Tensor) -> Tensor | None:
    """A copy of a float32 weight (out, in) in oneDNN's own order, for ``by_ordered``, if it can.

    A few rows are multiplied with it in half of the time, for it is read as one stream; hundreds in
    three quarters.
    """
    return _ordered(weight) if _orders() else None


def by_ordered(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` of rows that need no gradient and a weight that ``ordered`` has made."""
    return _by_weight(x, weight, bias)


@functools.cache
def _orders() -> bool:
    """Whether this PyTorch can put weights in oneDNN's order, and multiplies with them."""
    if not available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    x, weight = torch.ones(2, 3), torch.arange(15.0).view(5, 3)
    try:
        found = by_ordered(x, _ordered(weight))
    except RuntimeError:
        return False
    return torch.equal(found, F.linear(x, weight))


def _ordered(weight: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(weight, _ROWS)
    return found


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are plain float32 tensors on a CPU; fake and sharded ones are PyTorch's.

    So are empty ones and single vectors.
    """
    return (
        type(x) is Tensor
        and type(weight) in _PLAIN
        and x.dtype == weight.dtype == torch.float32
        and (bias is None or (type(bias) in _PLAIN and bias.dtype == torch.float32))
        and x.device.type == "cpu"
        and x.dim() > 1
        and x.numel() > 0
        and weight.numel() > 0
        and not torch.compiler.is_compiling()
    )


def _by_weight(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return found


def _towards_weight(grad: Tensor, x: Tensor) -> Tensor:
    """``grad.T @ x`` of (M, out) and (M, in).

    oneDNN copies its transposed operand, so that should be the smaller one; the gradient of a
    matrix with more rows than columns therefore comes transposed in memory.
    """
    if grad.shape[1] > x.shape[1]:
        return _by_weight(x.t(), grad.t()).t()
    return _by_weight(grad.t(), x.t())


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _by_weight(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        twice = torch.is_grad_enabled()  # for a gradient of the gradient
        rows, given = grad.flatten(0, -2), x.flatten(0, -2)  # (M, out), (M, in)
        return (
            (grad @ weight if twice else _by_weight(grad, weight.t())) if of_x else None,
            (rows.t() @ given if twice else _towards_weight(rows, given)) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )
