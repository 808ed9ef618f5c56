"""Matrices as decoding reads them: a float weight, and packed copies for single and for more rows.

PyTorch's matrix-vector product on a CPU reads a weight (O, I) along several rows at once. If the
weight is not cached, it reaches a quarter of the memory bandwidth: 10 GB/s of 49 on one core of a
Zen 4 server (2026-11-24). Packed into tiles of 16 outputs, each contiguous (I, 16), the weight is
read by a batched product as one stream at 22 to 30 GB/s, and two threads can share the work.
Several rows at once are multiplied with a copy in oneDNN's order (``products.ordered``).
"""

from __future__ import annotations

import contextlib
import mmap
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt_cli.machine import products

TILE = 16  # outputs per tile; 8 to 32 are about equally fast, 4 and 48 half as fast
_PACKED_ROWS = 8  # with more rows the plain product is as fast


class Tiles(NamedTuple):
    """A weight (O, I) in zero-padded tiles (⌈O/16⌉, I, 16), and its bias (⌈O/16⌉, 1, 16)."""

    weight: Tensor
    bias: Tensor | None

    def apply(self, x: Tensor) -> Tensor:
        """Multiply the rows of ``x`` (B, I); returns (⌈O/16⌉, B, 16)."""
        x = x.expand(self.weight.shape[0], -1, -1)
        if self.bias is None:
            return torch.bmm(x, self.weight)
        return torch.baddbmm(self.bias, x, self.weight)

    def buffer(self, *, passed_on: bool = False) -> Tensor:
        """Room for what ``scaled`` computes, which begins with the O outputs."""
        del passed_on
        return torch.empty(len(self.weight), 1, TILE)

    def scaled(self, x: Tensor, factor: float, out: Tensor) -> None:
        """Multiply one row ``x`` (1, I) times ``factor``, into a ``buffer``."""
        x = x.expand(self.weight.shape[0], -1, -1)
        if self.bias is None:
            torch.baddbmm(out, x, self.weight, beta=0, alpha=factor, out=out)
        else:
            torch.baddbmm(self.bias, x, self.weight, alpha=factor, out=out)

    def join(self, x: Tensor, factor: float, stream: Tensor) -> None:
        """Add the product of ``x`` (1, I) times ``factor``, without bias, to ``stream`` (1, O)."""
        x = x.expand(len(self.weight), -1, -1)
        stream.view(-1, 1, TILE).baddbmm_(x, self.weight, alpha=factor)


class Matrix:
    """A weight (O, I) and its bias: ``matrix(x)`` maps (..., I) to (..., O).

    Attributes:
        weight: shared with the model.
        bias: (O,) or ``None``.
        tiles: a packed copy of both for single rows, or ``None``.
        ordered: a copy of the weight in oneDNN's order for more rows, or ``None``.
    """

    __slots__ = ("bias", "ordered", "tiles", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.tiles: Tiles | None = None
        self.ordered: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply the rows of ``x``, with the copy that is made for so many."""
        outputs, inputs = self.weight.shape
        rows = x.numel() // inputs
        if rows > 1 and self.ordered is not None:
            return products.by_ordered(x, self.ordered, self.bias)
        if self.tiles is None or rows > _PACKED_ROWS:
            return products.forward(x, self.weight, self.bias)
        y = self.tiles.apply(x.reshape(rows, inputs)).transpose(0, 1).flatten(1)
        return y[:, :outputs].view(*x.shape[:-1], outputs)

    def plain(self, rows: int | None = None) -> Matrix:
        """A matrix with the first rows of the same tensors and no copies."""
        return Matrix(self.weight[:rows], None if self.bias is None else self.bias[:rows])

    @property
    def shape(self) -> torch.Size:
        """Numbers of outputs and inputs."""
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        """Bytes that are read for a row without the tiles."""
        return self.weight.nbytes

    @property
    def copied_bytes(self) -> int:
        """Bytes of the copies."""
        tiles = 0 if self.tiles is None else self.tiles.weight.nbytes
        return tiles + (0 if self.ordered is None else self.weight.nbytes)

    @property
    def product(self) -> Tiles | None:
        """What multiplies single rows, if there is something made for it."""
        return self.tiles

    @property
    def n_tiles(self) -> int:
        """Number of tiles that the outputs fill."""
        return -(-self.weight.shape[0] // TILE)

    def pack(self, room: Tensor) -> None:
        """Make the tiles; those of the weight are stored in ``room`` (n_tiles, I, 16)."""
        bias = None
        if self.bias is not None:
            bias = _tiled(self.bias[:, None], self.bias.new_empty(self.n_tiles, 1, TILE))
        self.tiles = Tiles(_tiled(self.weight, room), bias)


def _tiled(weight: Tensor, room: Tensor) -> Tensor:
    missing = -weight.shape[0] % TILE
    padded = F.pad(weight, (0, 0, 0, missing)) if missing else weight
    return room.copy_(padded.view(-1, TILE, weight.shape[1]).transpose(1, 2))


def reserve(numbers: int) -> Tensor:
    """An uninitialised float32 tensor of ``numbers`` values, in huge pages where there are any.

    With 2 MiB pages the same product reads 31 to 34 GB/s instead of 25 to 31 (2026-11-24, Linux,
    Zen 4).
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(numbers)
    large = 2 << 20
    pages = mmap.mmap(-1, 4 * numbers + large, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    room = torch.frombuffer(pages, dtype=torch.float32)
    start = -room.data_ptr() % large // 4
    return room[start : start + numbers]
