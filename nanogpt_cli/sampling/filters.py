"""From logits to the next token: filters, the draw, and whether rounding could have changed it.

Everything is computed in float64 with NumPy on one position's logits, alike for every device and
for both decoding paths. A draw uses the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, "A*
sampling"): each token's score gets its own Gumbel noise, a hash of the draw's key and the token id,
and the highest sum wins, which samples from the softmax. The noise of a token does not depend on
other tokens, so rounding changes a draw only where the two highest sums nearly tie. That is rare;
with inverse transform sampling, every boundary would move with all scores.
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
    """The 64-bit key of one draw: a pure function of its indices and the seed.

    Sample 3 of 4 therefore equals sample 3 of 8, and a token does not depend on the number of draws
    made before it.
    """
    place = struct.pack("<Qqqq", seed % 2**64, prompt, sample, position)
    return int.from_bytes(blake2b(place, digest_size=8).digest(), "little")


def gumbel(key: int, ids: Ids) -> Floats:
    """Standard Gumbel noise -log(-log u) of token ids in the draw with this key.

    u has 52 random bits plus half a step, so it is never 0 or 1. For token ``id`` it is the id-th
    number of the SplitMix64 stream that starts at ``key``.
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
    """Logits as float64 (V,) without padding ids, with repetition penalty, over the temperature.

    At temperature 0 they are not divided.

    Raises:
        UserError: a logit is NaN, or the largest one is infinite.
    """
    scores: Floats = np.array(logits, dtype=np.float64)[:vocab_size]
    if not np.isfinite(scores.max()):
        raise UserError("the model's logits are not finite", "did its training diverge?")
    if sampling.repetition_penalty != 1.0 and seen:
        ids = np.fromiter(set(seen), dtype=np.int64)
        old = scores[ids]
        penalty = sampling.repetition_penalty
        scores[ids] = np.where(old > 0, old / penalty, old * penalty)
    return scores / sampling.temperature if sampling.temperature > 0 else scores


def kept(scores: Floats, sampling: Sampling) -> Ids:
    """The ids that remain of adjusted scores (V,) after top-k, top-p and min-p, ascending.

    Ids whose score equals the lowest one kept are kept as well.
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
        logits: (V,) logits of one position, as anything that NumPy converts to an array.
        key: the draw's key, see ``draw_key``; unused at temperature 0.
        sampling: the settings; the defaults if ``None``.
        seen: ids that the repetition penalty applies to.
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

    It is ``None`` if the best two sums nearly tie, or if a filter might remove the best token. The
    test is conservative: ``None`` does not prove that the draw would change.

    Args:
        scores: adjusted scores (V,).
        key: the draw's key.
        sampling: the settings.
        tolerance: bound on the error of a logit, after the repetition penalty.
    """
    if sampling.temperature == 0:
        ids, sums, shift, surely = np.arange(scores.size), scores, tolerance, -np.inf
    else:
        shift = tolerance / sampling.temperature + 1e-12  # noise and sums have rounding errors too
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
    """Log-probabilities (V,) in nats without temperature or filters; padding is left out."""
    scores: Floats = np.asarray(logits, dtype=np.float64)[:vocab_size]
    shifted: Floats = scores - scores.max()
    logprobs: Floats = shifted - np.log(np.exp(shifted).sum())
    return logprobs


def _bounds(scores: Floats, sampling: Sampling, shift: float) -> tuple[float, float]:
    """Bounds on the scores that pass the filters if each score may be wrong by up to ``shift``.

    Returns:
        (low, high): scores below ``low`` certainly fail and scores above ``high`` certainly pass.
        For ``shift`` 0, all scores from ``low`` on pass.
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
    """Tighten the bounds to scores with less than ``top_p`` of the probability mass above them.

    An error of ``shift`` in each score changes a share of the mass by a factor of up to
    exp(2 shift). Candidates that an earlier filter may have removed (those not above ``high``)
    might contribute nothing to the total mass.
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
