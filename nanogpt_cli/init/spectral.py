"""Spectral norms of a GPT's matrices, beside what their laws and the spectral condition ask for.

A layer keeps the size of its input, and its updates that of its output, at every width if the norm
‖W‖₂ of its matrix (out, in) and that of its update stay in proportion to √(out/in) (Yang, Simon and
Bernstein 2310.17813). Muon's update has the norm lr·√max(1, out/in) by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_cli.init.drawing import MatrixSpec
from nanogpt_cli.init.lanczos import lanczos
from nanogpt_cli.init.sources import WeightSource, chunks, load, matrices
from nanogpt_cli.model.parameters import layer_of, shapes
from nanogpt_cli.schemes import GROUPS
from nanogpt_cli.schemes.laws import Law

# Products with W and its transpose. The top of a random matrix's spectrum is dense: after 24 the
# norm is up to 0.6 % too small.
_PRODUCTS = 24


@dataclass(frozen=True)
class SpectralNorm:
    """The largest singular value of one matrix.

    Attributes:
        key: as in ``TensorStats``.
        shape: (out, in).
        norm: measured; NaN if the matrix is not finite.
        expected: by its law; NaN without one.
    """

    key: str
    shape: tuple[int, int]
    norm: float
    expected: float

    @property
    def condition(self) -> float:
        """The norm over √(out/in), which the spectral condition keeps the same at every width."""
        return self.norm / math.sqrt(self.shape[0] / self.shape[1])

    def muon_update(self, lr: float) -> float:
        """The norm of Muon's update over that of the matrix; infinite for a matrix of zeros."""
        update = lr * math.sqrt(max(1.0, self.shape[0] / self.shape[1]))
        return update / self.norm if self.norm else math.inf


def expected_norm(law: Law, shape: tuple[int, int], std: float) -> float:
    """‖W‖₂ that a law of standard deviation ``std`` gives a large (out, in) matrix.

    σ(√out + √in) for independent entries (Bai and Yin 1993), the gain of an orthogonal matrix.
    """
    rows, columns = shape
    if law.kind == "constant":
        return abs(law.scale) * math.sqrt(rows * columns)
    if law.kind == "orthogonal":
        return law.scale
    if law.placed:  # one orthogonal matrix a head, on top of each other
        return law.scale * math.sqrt(rows / law.head)
    return std * (math.sqrt(rows) + math.sqrt(columns))


def spectral_norms(
    source: WeightSource, progress: Callable[[int, int], None] | None = None
) -> list[SpectralNorm]:
    """Measure every matrix of the blocks and the head, one parameter in memory at a time.

    Args:
        source: of the weights.
        progress: called with (parameters done, parameters).
    """
    every = shapes(source.config)
    head = "transformer.wte.weight" if source.config.tied else "lm_head.weight"
    names = [n for n in every if len(every[n]) == 2 and layer_of(n) >= 0]
    found: list[SpectralNorm] = []
    for done, name in enumerate([*names, head]):
        if name == head:
            (spec,) = matrices(source, name)
            found.append(_result(source, spec, _of_gram(source, name)))
        else:
            found += _of_block(source, name, every[name])
        if progress:
            progress(done + 1, len(names) + 1)
    return found


def _of_block(source: WeightSource, name: str, shape: tuple[int, ...]) -> Iterator[SpectralNorm]:
    whole = torch.empty(shape)
    load(source, name, whole)
    for spec in matrices(source, name):
        assert spec.tensor_class in GROUPS["linear"]
        yield _result(source, spec, norm_of(whole[spec.start : spec.start + spec.shape[0]]))


def _result(source: WeightSource, spec: MatrixSpec, norm: float) -> SpectralNorm:
    expected = expected_norm(spec.law, spec.shape, spec.std) if source.scheme else math.nan
    return SpectralNorm(spec.key, spec.shape, norm, expected)


def norm_of(matrix: Tensor) -> float:
    """‖W‖₂ of a float32 matrix by the Lanczos method, from below; NaN if it is not finite."""
    if not bool(torch.isfinite(matrix).all()):
        return math.nan
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    start = torch.empty(wide.shape[0])
    largest = lanczos(lambda v: [wide @ (wide.T @ v[0])], [start], _PRODUCTS, seed=0)[-1]
    return math.sqrt(max(0.0, largest))


def _of_gram(source: WeightSource, name: str) -> float:
    """‖W‖₂ of a table that is read in chunks of rows: the root of the largest eigenvalue of WᵀW."""
    gram = torch.zeros(source.config.n_embd, source.config.n_embd)
    for _, rows in chunks(source, name):
        gram += rows.T @ rows
    if not bool(torch.isfinite(gram).all()):
        return math.nan
    largest = lanczos(lambda v: [gram @ v[0]], [torch.empty(len(gram))], _PRODUCTS, seed=0)[-1]
    return math.sqrt(max(0.0, largest))
