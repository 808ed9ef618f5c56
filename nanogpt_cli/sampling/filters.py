"""From logits to the next token: filters, the draw, and whether rounding could have changed it.

All of it is float64 NumPy on one position's logits, the same for every device and for both
decoding paths. A draw is the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, "A* sampling"):
each token's score gets noise of its own, a hash of where the draw stands and of the token, and the
highest sum wins, with the probabilities of the softmax. Noise depends on no other token, so
rounding changes a draw only where the best two sums nearly tie; against the inverse of the
cumulative distribution, where every boundary moves with all the scores, such ties are rare.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt_cli.errors import UserError
from nanogpt_cli.machine.hashing import mix
from nanogpt_cli.sampling.settings import Sampling

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment


def draw_key(seed: int, prompt: int, sample: int, position: int) -> int:
    """The 64-bit key of one draw: a pure function of where it stands.

    Sample 3 is the same among 4 and among 8, and a token does not depend on how many draws came
    before it.
    """
    place = struct.pack("<Qqqq", seed % 2**64, prompt, sample, position)
    return int.from_bytes(blake2b(place, digest_size=8).digest(), "little")


def gumbel(key: int, ids: Ids) -> Floats:
    """Standard Gumbel noise of tokens in the draw named ``key``: -log(-log u), u from a hash.

    52 bits of it, and half a step, so that u is never 0 or 1. Of a token id SplitMix64 takes the
    id-th number of its stream from ``key``.
    """
    u = (mix(ids.astype(np.uint64) * _GOLDEN + np.uint64(key)) >> np.uint64(12)).astype(np.float64)
    u += 0.5
    u *= 2.0**-52
    for _ in range(2):  # in place: a fresh array of a whole vocabulary costs as much as a logarithm
        np.negative(np.log(u, out=u), out=u)
    return u


def adjusted(
    logits: Any, sampling: Sampling, *, seen: Collection[int] = (), vocab_size: int | None = None
) -> Floats:
    """Logits (V,) as float64: padded ids cut off, seen ids penalised, divided by temperature.

    At temperature 0 they are left unscaled.

    Raises:
        UserError: a logit is not a number.
    """
    scores: Floats = np.array(logits, dtype=np.float64)[:vocab_size]
    if np.isnan(scores.max()):
        raise UserError("the model's logits are not numbers", "have its weights diverged?")
    if sampling.repetition_penalty != 1.0 and seen:
        ids = np.fromiter(set(seen), dtype=np.int64)
        old = scores[ids]
        penalty = sampling.repetition_penalty
        scores[ids] = np.where(old > 0, old / penalty, old * penalty)
    return scores / sampling.temperature if sampling.temperature > 0 else scores


def kept(scores: Floats, sampling: Sampling) -> Ids:
    """The ids that top-k, then top-p, then min-p leave of adjusted scores (V,), ascending.

    Scores equal to the lowest one kept stay as well.
    """
    return np.flatnonzero(scores >= _bounds(scores, sampling, 0.0)[0])


def next_token(
    logits: Any,
    key: int,
    sampling: Sampling | None = None,
    *,
    seen: Collection[int] = (),
    vocab_size: int | None = None,
) -> int:
    """Choose the next token.

    Args:
        logits: (V,) scores of one position, anything NumPy can read.
        key: of the draw, see ``draw_key``; not read at temperature 0.
        sampling: the settings; their defaults when ``None``.
        seen: ids the repetition penalty applies to.
        vocab_size: ids from here on are padding and are never drawn.

    Returns:
        The token id; at temperature 0 the lowest among equal logits.
    """
    sampling = sampling or Sampling()
    scores = adjusted(logits, sampling, seen=seen, vocab_size=vocab_size)
    if sampling.temperature == 0:
        return int(scores.argmax())
    ids = kept(scores, sampling)
    return int(ids[(scores[ids] + gumbel(key, ids)).argmax()])


def settled_token(scores: Floats, key: int, sampling: Sampling, tolerance: float) -> int | None:
    """The token to draw, or ``None`` if moving every logit by up to ``tolerance`` might change it.

    ``None`` when the best two nearly tie, or when the best might fall to a filter. A doubtful
    token that would lose anyway is no reason. Cautious: ``None`` where the draw would hold is
    possible.

    Args:
        scores: adjusted scores (V,).
        key: of the draw.
        sampling: the settings.
        tolerance: bound on the error of a logit, after the repetition penalty.
    """
    if sampling.temperature == 0:
        ids, sums, shift, surely = np.arange(scores.size), scores, tolerance, -np.inf
    else:
        shift = tolerance / sampling.temperature + 1e-12  # sums and noise are rounded as well
        perhaps, surely = _bounds(scores, sampling, shift)
        ids = np.flatnonzero(scores >= perhaps)
        sums = scores[ids] + gumbel(key, ids)
    if ids.size == 1:  # filters leave at least one
        return int(ids[0])
    best = int(sums.argmax())
    second = np.partition(sums, -2)[-2]
    safe = sums[best] - second > 2 * shift and scores[ids[best]] > surely
    return int(ids[best]) if safe else None


def log_softmax(logits: Any, vocab_size: int | None = None) -> Floats:
    """Log-probabilities (V,) in nats of the unfiltered model, padding left out."""
    scores: Floats = np.asarray(logits, dtype=np.float64)[:vocab_size]
    shifted: Floats = scores - scores.max()
    logprobs: Floats = shifted - np.log(np.exp(shifted).sum())
    return logprobs


def _bounds(scores: Floats, sampling: Sampling, shift: float) -> tuple[float, float]:
    """What passes the filters if each score may be wrong by up to ``shift``.

    Returns:
        Scores below the first fail for sure, and scores above the second pass for sure. Without
        an error what is not below the first passes.
    """
    low = high = -np.inf
    if 0 < sampling.top_k < scores.size:
        k = sampling.top_k
        below, edge = np.partition(scores, (-k - 1, -k))[[-k - 1, -k]]
        low, high = edge - 2 * shift, below + 2 * shift
    if sampling.top_p < 1:
        low, high = _mass_bounds(scores[scores >= low], low, high, sampling.top_p, shift)
    if sampling.min_p > 0:
        least = scores.max() + np.log(sampling.min_p)
        low, high = max(low, least - 2 * shift), max(high, least + 2 * shift)
    return float(low), float(high)


def _mass_bounds(
    candidates: Floats, low: float, high: float, top_p: float, shift: float
) -> tuple[float, float]:
    """Tighten the bounds of what passes to scores with less than ``top_p`` of the mass above them.

    An error of ``shift`` in each score changes a share of the mass by a factor of up to
    exp(2 shift); candidates that may have failed before (not above ``high``) may add nothing to
    the whole.
    """
    ranked = -np.sort(-candidates)
    mass = np.cumsum(np.exp(ranked - ranked[0]))
    doubtful = 0.0
    if shift and ranked[-1] <= high:
        certain = int((ranked > high).sum())
        doubtful = 1.0 - float(mass[certain - 1] / mass[-1]) if certain else 1.0
    above, growth = mass[:-1] / mass[-1], np.exp(2 * shift)
    loose = int(np.searchsorted(above, top_p * growth))
    tight = int(np.searchsorted(above, top_p * (1 - doubtful) / growth)) + 1
    low = max(low, ranked[loose] - 2 * shift)
    return low, high if tight == ranked.size else max(high, ranked[tight] + 2 * shift)
