"""Initial values without chance: sinusoidal positions, and queries and keys that compare them.

The first channels of every position's vector are pairs (A·cos ωt, A·sin ωt) with the frequencies ω
of ``frequencies`` (Vaswani et al. 1706.03762); the others are zero. Keys read these channels. So do
queries, turned by ω·h in head h = 0, 1, …: the score Σ cos ω(i - j - h) is largest where the key
stands h positions before the query. Heads of trained models often look back by a fixed distance,
and Trockman and Kolter (2305.09828) begin with queries and keys that compare positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

# The kinds of law, with their argument.
KINDS = {"sinusoids": "std", "positions": "gain", "offsets": "gain"}
# The classes of tensor for which each has a meaning.
CLASSES = {"sinusoids": ("wpe",), "positions": ("q", "k"), "offsets": ("q", "k")}
# The most channels that hold the position. Few slow waves tell near positions apart and leave the
# other channels to the tokens. No wave is a multiple of another one, or positions would look alike
# after its period: with 30, those up to 64 apart have a cosine below 0.45 unless they are near.
MOST = 8
_SLOWEST = 30


class Moments(NamedTuple):
    """Of all values of a matrix."""

    mean: float
    mean_square: float
    kurtosis: float
    largest: float


def channels(head: int) -> int:
    """How many channels hold the position, for heads of so many channels."""
    return min(MOST, head)


def frequencies(head: int) -> tuple[float, ...]:
    """ω of each pair of channels, in radians a position: 1, 0.43, 0.18, 0.08."""
    pairs = MOST // 2
    return tuple(_SLOWEST ** (-n / pairs) for n in range(-(-channels(head) // 2)))


def entries(
    kind: str, scale: float, shape: tuple[int, int], head: int
) -> Iterator[tuple[int, int, float]]:
    """Yield (row, column, value) of every value that is not zero by construction.

    Args:
        kind: one of ``KINDS``.
        scale: root mean square of the position table over full turns, or factor on the channels.
        shape: (rows, columns): (positions, channels), or (heads · head, channels).
        head: channels of a head.
    """
    rows, width = shape
    n, waves = min(channels(head), width), frequencies(head)
    if kind == "sinusoids":
        size = scale * math.sqrt(2 * width / n)
        for t in range(rows):
            for c in range(n):
                angle = waves[c // 2] * t
                yield t, c, size * (math.sin(angle) if c % 2 else math.cos(angle))
        return
    for h in range(rows // head):
        turn = h if kind == "offsets" else 0
        for c in range(n):
            row, pair = h * head + c, c ^ 1  # the other channel of the pair
            if pair >= n or not turn:
                yield row, c, scale
                continue
            angle = waves[c // 2] * turn
            yield row, c, scale * math.cos(angle)
            yield row, pair, scale * math.sin(angle) * (-1 if c % 2 else 1)


@lru_cache(maxsize=256)
def moments(kind: str, scale: float, shape: tuple[int, int], head: int) -> Moments:
    """Moments of a matrix, from its values."""
    size = shape[0] * shape[1]
    values = [value for _, _, value in entries(kind, scale, shape, head)]
    mean = math.fsum(values) / size
    square = math.fsum(v * v for v in values) / size
    zeros = size - len(values)
    fourth = (math.fsum((v - mean) ** 4 for v in values) + zeros * mean**4) / size
    variance = square - mean * mean
    kurtosis = fourth / variance**2 if variance > 0 else math.nan
    return Moments(mean, square, kurtosis, max(map(abs, values), default=0.0))
