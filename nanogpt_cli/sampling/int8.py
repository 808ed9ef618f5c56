"""Matrices rounded to eight bits: a quarter of the bytes that decoding a token reads.

A row of a weight is integers from -127 to 127 times a scale of its own. PyTorch's product for it
takes the input in bfloat16, adds in float32 and rounds each output to bfloat16, so logits are as
coarse as with ``--precision bf16``. Many rows at once, as in a prompt, are bound by arithmetic and
not by reading: they are multiplied with a float weight made from the integers on the spot, in
bfloat16, which holds integers up to 256, if the processor multiplies it, else in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt_cli.machine.formats import cpu_multiplies_bf16

_LARGEST = 127
# PyTorch's kernel reads rows in steps of this and beyond the end of others (2.13: NaN or a crash).
_STEP = 16
_FEW_ROWS = 16  # with more, making a float weight for one product is faster


@dataclass(frozen=True, slots=True, eq=False)
class Int8Matrix:
    """A weight (O, I) in eight bits and its bias: ``matrix(x)`` maps (..., I) to (..., O).

    Attributes:
        weight: int8 (O, I'), I' the next multiple of 16, padded by zeros.
        scales: bfloat16 (O,), one for each row.
        bias: float32 (O,) or ``None``.
        shape: (O, I).
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor | None
    shape: torch.Size

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply the rows of ``x``."""
        outputs, inputs = self.shape
        rows = x.numel() // inputs
        if rows <= _FEW_ROWS:
            y = self._product(x.reshape(rows, inputs)).float().view(*x.shape[:-1], outputs)
        elif cpu_multiplies_bf16():
            y = F.linear(x.bfloat16(), self.weight[:, :inputs].bfloat16()) * self.scales.float()
        else:
            return F.linear(x, self.dequantised(), self.bias)
        return y if self.bias is None else y + self.bias

    def dequantised(self) -> Tensor:
        """The weight (O, I) in float32 that the integers stand for."""
        return self.weight[:, : self.shape[1]].float() * self.scales.float()[:, None]

    def plain(self, rows: int | None = None) -> Int8Matrix:
        """The first rows of the matrix."""
        bias = None if self.bias is None else self.bias[:rows]
        weight = self.weight[:rows]
        shape = torch.Size((len(weight), self.shape[1]))
        return Int8Matrix(weight, self.scales[:rows], bias, shape)

    @property
    def nbytes(self) -> int:
        """Bytes that are read for a row."""
        return self.weight.nbytes

    @property
    def copied_bytes(self) -> int:
        """Bytes of the matrix, which is itself a copy."""
        return self.weight.nbytes

    @property
    def product(self) -> Int8Matrix:
        """What multiplies single rows."""
        return self

    def buffer(self, *, passed_on: bool = False) -> Tensor:
        """Room for what ``scaled`` computes, (1, O); bfloat16 if only another product reads it."""
        return torch.empty(1, self.shape[0], dtype=torch.bfloat16 if passed_on else torch.float32)

    def scaled(self, x: Tensor, factor: float, out: Tensor) -> None:
        """Multiply one row ``x`` (1, I) times ``factor``, into a ``buffer``."""
        out.copy_(self._product(x))
        if factor != 1.0:
            out.mul_(factor)
        if self.bias is not None:
            out.add_(self.bias)

    def join(self, x: Tensor, factor: float, stream: Tensor) -> None:
        """Add the product of ``x`` (1, I) times ``factor``, without bias, to ``stream`` (1, O)."""
        stream.add_(self._product(x), alpha=factor)

    def _product(self, x: Tensor) -> Tensor:
        """Rows (n, I) times the weight, without the bias, in bfloat16."""
        given = x.bfloat16()
        if missing := self.weight.shape[1] - self.shape[1]:
            given = F.pad(given, (0, missing))
        return torch._weight_int8pack_mm(given, self.weight, self.scales)


def rounded(weight: Tensor, bias: Tensor | None) -> Int8Matrix:
    """A float weight (O, I) with each row rounded to multiples of its largest value over 127."""
    exact = weight.float()
    largest = exact.abs().amax(dim=1)
    scales = (largest / _LARGEST).bfloat16()
    scales[scales == 0] = 1.0
    # A scale that was rounded down makes 127 at most 127.25, which is 127.
    integers = (exact / scales.float()[:, None]).round_()
    padded = F.pad(integers.to(torch.int8), (0, -weight.shape[1] % _STEP))
    return Int8Matrix(padded, scales, None if bias is None else bias.float(), weight.shape)
