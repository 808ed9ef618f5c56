"""How surprising a figure would be among independent random weights.

Each function returns a rate: −ln of a bound on the probability of a value at least as far out. A
figure is a finding where its rate exceeds ``limit(tests)``, so that all tests of one kind on one
model together raise a false alarm with a probability of at most ``ALPHA``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Probability that one kind of test raises a false alarm on one model.
ALPHA = 1e-9


def limit(tests: int) -> float:
    """The rate that none of ``tests`` figures exceeds, but with probability ``ALPHA`` (a union)."""
    return math.log(max(1, tests) / ALPHA)


def of_variance(ratio: Tensor, n: float) -> Tensor:
    """Rates of mean squares of ``n`` values, as ratios to their variance.

    Chernoff's bound for χ²_n: P(χ²/n ≥ r) ≤ exp(−n/2·(r − 1 − ln r)), and the same for ≤ where
    r < 1. It holds for every law whose square is less variable than a normal's (uniform, truncated,
    entries of an orthogonal matrix).
    """
    r = ratio.double().clamp_min(1e-300)
    return n / 2 * (r - 1 - r.log())


def of_mean(z: float) -> float:
    """The rate of a mean ``z`` standard errors from 0: P(|Z| ≥ z) ≤ exp(−z²/2)."""
    return z * z / 2


def of_correlation(r: Tensor, n: Tensor | float) -> Tensor:
    """Rates of correlations over ``n`` independent pairs.

    The projection of one direction on another in n dimensions is r with density proportional to
    (1 − r²)^((n−3)/2), so P(|R| ≥ r) ≤ (1 − r²)^((n−2)/2).
    """
    rest = (1 - r.double().square()).clamp_min(1e-14)
    return -(torch.as_tensor(n, dtype=torch.float64) - 2) / 2 * rest.log()


def of_share(share: float, expected: float, n: int) -> float:
    """The rate of a share at least this large of ``n`` events of probability ``expected``.

    Chernoff's bound for the binomial: exp(−n·KL(share ‖ expected)).
    """
    if share <= expected:
        return 0.0
    rest = 0.0 if share >= 1 else (1 - share) * math.log((1 - share) / (1 - expected))
    return n * (share * math.log(share / expected) + rest)
