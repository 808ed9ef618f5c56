"""Sources of weights for an inspection: drawn from a scheme on demand, or existing tensors.

A source provides one parameter at a time, so the whole model need not be in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nanogpt_cli.init.drawing import CHUNK_ROWS, MatrixSpec, draw, matrices_of
from nanogpt_cli.init.tensor_stats import TensorStats, measure_tensor
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.model.parameters import layer_of
from nanogpt_cli.schemes import Scheme, get

# Drawing 25 million values a second time costs 0.1 s of CPU time; this much memory is available.
_KEEP = 96 << 20
Observer = Callable[[TensorStats], None]


class WeightSource(Protocol):
    """Weights by parameter name."""

    @property
    def config(self) -> GPTConfig:
        """The model's configuration, with the scheme's multipliers."""
        ...

    @property
    def scheme(self) -> Scheme | None:
        """The scheme that the weights are supposed to follow, if any."""
        ...

    def rows(self, spec: MatrixSpec, start: int, out: Tensor) -> Tensor:
        """Fill ``out`` (float32, CPU) with rows ``start``.. of a matrix, and return it."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Weights drawn from a scheme on demand, bit-identical to those of ``init.drawing.build``."""

    config: GPTConfig
    scheme: Scheme
    seed: int

    def rows(self, spec: MatrixSpec, start: int, out: Tensor) -> Tensor:
        """See ``WeightSource.rows``."""
        return draw(spec, self.seed, out, start=start)


@dataclass(frozen=True)
class Stored:
    """Existing tensors: those of a checkpoint, read lazily, or of a module.

    Args:
        config: configuration of their model.
        read: maps a parameter name to its tensor.
        scheme: the scheme they are supposed to follow, if any.
    """

    config: GPTConfig
    read: Callable[[str], Tensor]
    scheme: Scheme | None = None

    def rows(self, spec: MatrixSpec, start: int, out: Tensor) -> Tensor:
        """See ``WeightSource.rows``."""
        whole = self.read(spec.parameter).detach()
        first = spec.start + start
        return out.copy_(whole[first : first + len(out)].reshape(out.shape))


def matrices(source: WeightSource, name: str) -> list[MatrixSpec]:
    """The matrices of parameter ``name``; without a scheme their laws are meaningless."""
    return matrices_of(name, source.config, source.scheme or get("normal"))


def load(source: WeightSource, name: str, out: Tensor, observe: Observer | None = None) -> None:
    """Fill ``out`` with a whole parameter; ``observe`` gets the statistics of its matrices."""
    for spec in matrices(source, name):
        values = out[spec.start : spec.start + spec.shape[0]].view(*spec.shape)
        source.rows(spec, 0, values)
        if observe is not None:
            law = (spec.law, spec.std) if source.scheme else (None, math.nan)
            kind = spec.tensor_class
            observe(measure_tensor(values, spec.key, kind, layer_of(name), *law))


def chunks(
    source: WeightSource, name: str, kept: dict[int, Tensor] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, rows) of a matrix, ``CHUNK_ROWS`` at a time, in a buffer that is reused.

    Args:
        source: source of the values.
        name: name of a parameter that is one matrix.
        kept: cache of the first chunks for the next pass, of up to ``_KEEP`` bytes.
    """
    (spec,) = matrices(source, name)
    rows, columns = spec.shape
    buffer = torch.empty(0)
    for start in range(0, rows, CHUNK_ROWS):
        if kept and start in kept:
            yield start, kept[start]
            continue
        n = min(CHUNK_ROWS, rows - start)
        keep = kept is not None and 4 * (start + n) * columns <= _KEEP
        if keep or not len(buffer):
            buffer = torch.empty(min(CHUNK_ROWS, rows), columns)
        out = source.rows(spec, start, buffer[:n])
        if kept is not None and keep:
            kept[start], buffer = out, torch.empty(0)
        yield start, out
