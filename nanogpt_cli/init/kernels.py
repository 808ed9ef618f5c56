"""The effect of an activation on Gaussian pre-activations: exact moments and covariances.

For two pre-activations with variances q₁, q₂ and covariance r: ``value`` is E[φ(x)φ(y)] and
``slope`` is E[φ′(x)φ′(y)], which propagates gradients (Price's theorem: slope = ∂value/∂r).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from nanogpt_cli.model.mlp import ACTIVATIONS

# Values and slopes of a kernel matrix R, R_ij = covariance of pre-activations i and j.
Kernel = Callable[[Tensor], tuple[Tensor, Tensor]]


def gelu_second_moment(q: float) -> float:
    """E[gelu(x)²] for x of variance ``q`` (exact GELU)."""
    return q * (
        0.25
        + math.asin(q / (1 + q)) / (2 * math.pi)
        + q / (math.pi * (1 + q) * math.sqrt(1 + 2 * q))
    )


def gelu(R: Tensor) -> tuple[Tensor, Tensor]:
    """Exact GELU, by Stein's lemma; the general kernel is in Tsuchida et al. 2002.08517."""
    q = R.diagonal()
    p = 1 + q
    product = p[:, None] * p
    asin = torch.asin((R / product.sqrt()).clamp(-1, 1)) / (2 * math.pi)
    det = product - R * R
    root = det.sqrt()
    qq = q[:, None] * q
    bracket = 1 / p[:, None] + 1 / p - 1
    numerator = qq + R * R * bracket
    value = R / 4 + R * asin + numerator / (2 * math.pi * root)
    slope = 0.25 + asin + R / (2 * math.pi * root)
    slope += (2 * R * bracket / root + numerator * R / (det * root)) / (2 * math.pi)
    return value, slope


def relu(R: Tensor) -> tuple[Tensor, Tensor]:
    """ReLU: arc-cosine kernel of order 1 (Cho & Saul 2009)."""
    size, cos, angle = _polar(R)
    value = size * (cos_sin(cos) + (math.pi - angle) * cos) / (2 * math.pi)
    return value, (math.pi - angle) / (2 * math.pi)


def relu2(R: Tensor) -> tuple[Tensor, Tensor]:
    """Squared ReLU: arc-cosine kernel of order 2; its slope is four times order 1."""
    size, cos, angle = _polar(R)
    left = math.pi - angle
    value = size.square() * (3 * cos_sin(cos) * cos + left * (1 + 2 * cos * cos)) / (2 * math.pi)
    return value, 4 * relu(R)[0]


def cos_sin(cos: Tensor) -> Tensor:
    """The non-negative sine of the angle whose cosine is given."""
    return (1 - cos * cos).clamp_min(0).sqrt()


def _polar(R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = (R.diagonal()[:, None] * R.diagonal()).clamp_min(0).sqrt()
    cos = (R / size.clamp_min(1e-300)).clamp(-1, 1)
    return size, cos, torch.acos(cos)


def dead_share(variance: float, covariance: float, n_tokens: int) -> float:
    """Share of ReLU's units that are zero on each of ``n_tokens`` tokens.

    All pairs of tokens are assumed to have the same covariance, so that one Gaussian integral over
    their common part is enough.
    """
    if n_tokens < 2 or variance <= 0:
        return 0.5
    c = min(max(covariance / variance, 0.0), 1 - 1e-9)
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    weight = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    below = torch.special.log_ndtr(-math.sqrt(c / (1 - c)) * z) * n_tokens
    return float((weight * below.exp()).sum())


@lru_cache(maxsize=512)
def hermite_coefficients(activation: str, q: float, terms: int = 24) -> tuple[float, ...]:
    """Coefficients of φ(√q·z) in normalised Hermite polynomials, by quadrature on a fine grid."""
    z = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    weight = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    phi = ACTIVATIONS[activation](math.sqrt(q) * z)
    before, now = torch.zeros_like(z), torch.ones_like(z)
    found = []
    for n in range(terms):
        found.append(float((weight * phi * now).sum()))
        before, now = now, (z * now - math.sqrt(n) * before) / math.sqrt(n + 1)
    return tuple(found)


# Variances that differ by less than this factor share the coefficients of their mean.
_ALIKE = 1.1
_GRID = math.log(1.1)  # between the variances at which coefficients are computed


def hermite(activation: str) -> Kernel:
    """The kernel of any smooth activation: value = Σ aₙ(q₁)·aₙ(q₂)·ρⁿ.

    Behind a norm all variances are equal up to ε, which enters through ρ, and the aₙ are those of
    the mean variance. Where no norm stands before the MLP, each token has its own.
    """

    def kernel(R: Tensor) -> tuple[Tensor, Tensor]:
        q = R.diagonal()
        mean = float(q.mean())
        if mean <= 0:
            return torch.zeros_like(R), torch.full_like(R, 0.25)
        rho = (R / (q[:, None] * q).sqrt().clamp_min(1e-300)).clamp(-1, 1)
        if float(q.max()) > _ALIKE * float(q.min()):
            a = _coefficients_of_each(activation, q)
            terms: list[Tensor | float] = [row[:, None] * row for row in a]
            size = (q[:, None] * q).sqrt().clamp_min(1e-300)
        else:
            terms = [a * a for a in hermite_coefficients(activation, round(mean, 12))]
            size = torch.tensor(mean, dtype=R.dtype)
        value = torch.full_like(R, 1.0) * terms[-1]
        slope = torch.full_like(R, len(terms) - 1.0) * terms[-1]
        for n in range(len(terms) - 2, -1, -1):
            value.mul_(rho).add_(terms[n])
            if n:
                slope.mul_(rho).add_(n * terms[n])
        return value, slope / size

    return kernel


def _coefficients_of_each(activation: str, q: Tensor) -> Tensor:
    """Coefficients (terms, N) at the variances q (N,), between those of a grid by interpolation."""
    place = q.clamp_min(1e-12).log() / _GRID
    low = place.floor().long()
    steps = range(int(low.min()), int(low.max()) + 2)
    table = torch.tensor(
        [hermite_coefficients(activation, math.exp(_GRID * step)) for step in steps],
        dtype=torch.float64,
    )  # (steps, terms)
    left, part = low - steps.start, (place - low)[:, None]
    return (table[left] * (1 - part) + table[left + 1] * part).T


def gated(kernel: Kernel) -> Kernel:
    """The kernel of SwiGLU's hidden units φ(g)·v, whose gate and value have the same covariance.

    ``slope`` sums the gradient paths through the gate and through the value.
    """

    def product(R: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = kernel(R)
        return value * R, slope * R + value

    return product


_SILU = hermite("silu")
KERNELS: dict[str, Kernel] = {
    "gelu": gelu,
    "gelu_tanh": hermite("gelu_tanh"),
    "relu": relu,
    "relu2": relu2,
    "silu": _SILU,
    "swiglu": gated(_SILU),
}


def second_moment(activation: str, q: float) -> float:
    """E[h²] of a hidden unit whose pre-activation has variance ``q``."""
    return float(KERNELS[activation](torch.tensor([[q]], dtype=torch.float64))[0])
