"""Where an inspection reads weights from: a scheme that draws them, or tensors that exist.

A source is asked for one parameter at a time and never needs the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nanogpt_cli.init.drawing import CHUNK_ROWS, Piece, draw, pieces
from nanogpt_cli.init.tensor_stats import TensorStats, measure_tensor
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.model.parameters import layer_of
from nanogpt_cli.schemes import Scheme, get

# Drawing 25 million values again costs 0.1 s of CPU; this much memory is there.
_KEEP = 96 << 20
Observer = Callable[[TensorStats], None]


class Source(Protocol):
    """Weights by parameter name."""

    @property
    def config(self) -> GPTConfig:
        """The model, with the scheme's multipliers."""
        ...

    @property
    def scheme(self) -> Scheme | None:
        """What the weights are said to follow."""
        ...

    def rows(self, piece: Piece, start: int, out: Tensor) -> Tensor:
        """Fill ``out`` (float32, CPU) with rows ``start``.. of a matrix, and return it."""
        ...


@dataclass(frozen=True)
class Drawn:
    """The weights a scheme gives, drawn when asked for: the bits of ``init.drawing.build``."""

    config: GPTConfig
    scheme: Scheme
    seed: int

    def rows(self, piece: Piece, start: int, out: Tensor) -> Tensor:
        """See ``Source.rows``."""
        return draw(piece, self.seed, out, start=start)


@dataclass(frozen=True)
class Stored:
    """Tensors that exist: a checkpoint's, read lazily, or a module's.

    Args:
        config: the model they belong to.
        read: gives the tensor of a parameter name.
        scheme: the scheme they are said to come from, if any.
    """

    config: GPTConfig
    read: Callable[[str], Tensor]
    scheme: Scheme | None = None

    def rows(self, piece: Piece, start: int, out: Tensor) -> Tensor:
        """See ``Source.rows``."""
        whole = self.read(piece.parameter).detach()
        first = piece.start + start
        return out.copy_(whole[first : first + len(out)].reshape(out.shape))


def parts(source: Source, name: str) -> list[Piece]:
    """The matrices of parameter ``name``; without a scheme their laws mean nothing."""
    return pieces(name, source.config, source.scheme or get("normal"))


def load(source: Source, name: str, out: Tensor, observe: Observer | None = None) -> None:
    """Fill a whole parameter, reporting the statistics of its matrices."""
    for piece in parts(source, name):
        values = out[piece.start : piece.start + piece.shape[0]].view(*piece.shape)
        source.rows(piece, 0, values)
        if observe is not None:
            law = (piece.law, piece.std) if source.scheme else (None, math.nan)
            kind = piece.tensor_class
            observe(measure_tensor(values, piece.key, kind, layer_of(name), *law))


def chunks(
    source: Source, name: str, kept: dict[int, Tensor] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of a matrix, ``CHUNK_ROWS`` at a time; one buffer serves them all.

    Args:
        source: of its values.
        name: of the matrix, a whole parameter.
        kept: the first chunks, as many as ``_KEEP`` bytes hold, stay in here for the next pass.
    """
    (piece,) = parts(source, name)
    rows, columns = piece.shape
    buffer = torch.empty(0)
    for start in range(0, rows, CHUNK_ROWS):
        if kept and start in kept:
            yield start, kept[start]
            continue
        n = min(CHUNK_ROWS, rows - start)
        keep = kept is not None and 4 * (start + n) * columns <= _KEEP
        if keep or not len(buffer):
            buffer = torch.empty(min(CHUNK_ROWS, rows), columns)
        out = source.rows(piece, start, buffer[:n])
        if kept is not None and keep:
            kept[start], buffer = out, torch.empty(0)
        yield start, out
