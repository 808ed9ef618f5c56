"""The largest eigenvalue of a symmetric operator, by the Lanczos method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Vector = Sequence[Tensor]
_NEGLIGIBLE = 1e-6


def lanczos(
    product: Callable[[Vector], Vector],
    like: Vector,
    products: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Largest eigenvalue of a symmetric operator after each of some products, from below.

    Every vector is made orthogonal to all earlier ones, which keeps rounding from bringing copies
    of the largest eigenvalue.

    Args:
        product: the operator, on lists of tensors.
        like: tensors of the shapes of a vector.
        products: at most this many; fewer if the vectors span all that the operator reaches.
        seed: of the first vector.
        progress: called with (products done, products).
    """
    rng = torch.Generator().manual_seed(seed)
    v = [torch.randn(p.shape, generator=rng).to(p) for p in like]
    v = _scaled(v, 1 / _dot(v, v) ** 0.5)
    basis: list[list[Tensor]] = []
    diagonal: list[float] = []
    beside: list[float] = []
    estimates: list[float] = []
    for n in range(products):
        basis.append(v)
        w = product(v)
        diagonal.append(_dot(w, v))
        T = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        for i, b in enumerate(beside):
            T[i, i + 1] = T[i + 1, i] = b
        estimates.append(float(torch.linalg.eigvalsh(T)[-1]))
        if progress:
            progress(n + 1, products)
        for _ in range(2):
            for u in basis:
                overlap = _dot(w, u)
                w = [a - overlap * b for a, b in zip(w, u, strict=True)]
        length = _dot(w, w) ** 0.5
        if length <= _NEGLIGIBLE * max(abs(x) for x in diagonal):
            break
        beside.append(length)
        v = _scaled(w, 1 / length)
    return estimates


def _dot(a: Vector, b: Vector) -> float:
    # Added up where the tensors lie: a number read of each would wait for the device each time.
    return float(sum((x * y).double().sum() for x, y in zip(a, b, strict=True)))


def _scaled(v: Vector, factor: float) -> list[Tensor]:
    return [x * factor for x in v]
