"""From logits to the next token: filters, the draw, and whether rounding could have changed it.

All of it is float64 NumPy on one position's logits, the same for every device and for both
decoding paths. A draw is the inverse of the cumulative distribution, taken in the order of token
ids: rounding that swaps two nearly equal probabilities then moves no boundary but theirs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt_cli.sampling import Sampling

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


def uniform(seed: int, prompt: int, sample: int, position: int) -> float:
    """The random number in [0, 1) behind one draw: a pure function of where the draw stands.

    Sample 3 is the same among 4 and among 8, and a token does not depend on how many draws came
    before it. 53 bits of BLAKE2b over the four integers.
    """
    key = struct.pack("<Qqqq", seed % 2**64, prompt, sample, position)
    return float(int.from_bytes(blake2b(key, digest_size=8).digest(), "little") >> 11) * 2.0**-53


@dataclass(frozen=True)
class Kept:
    """What the filters leave of a distribution.

    Attributes:
        ids: the tokens that can be drawn, ascending.
        probs: their probabilities, summing to 1.
    """

    ids: Ids
    probs: Floats


def adjusted(
    logits: Any, sampling: Sampling, *, seen: Collection[int] = (), vocab_size: int | None = None
) -> Floats:
    """Logits (V,) as float64: padded ids cut off, seen ids penalised, divided by temperature.

    At temperature 0 they are left unscaled.
    """
    scores: Floats = np.array(logits, dtype=np.float64)[:vocab_size]
    if sampling.repetition_penalty != 1.0 and seen:
        ids = np.fromiter(set(seen), dtype=np.int64)
        old = scores[ids]
        penalty = sampling.repetition_penalty
        scores[ids] = np.where(old > 0, old / penalty, old * penalty)
    return scores / sampling.temperature if sampling.temperature > 0 else scores


def keep(scores: Floats, sampling: Sampling) -> Kept:
    """Apply top-k, top-p and min-p to adjusted scores (V,)."""
    order, probs = _ranked(scores, sampling.top_k)
    count = _count(probs, sampling)
    return _in_id_order(order[:count], probs[:count])


def next_token(
    logits: Any,
    rng: Callable[[], float],
    sampling: Sampling | None = None,
    *,
    seen: Collection[int] = (),
    vocab_size: int | None = None,
) -> int:
    """Choose the next token.

    Args:
        logits: (V,) scores of one position, anything NumPy can read.
        rng: gives a uniform number in [0, 1); asked once, and not at all at temperature 0.
        sampling: the settings; their defaults when ``None``.
        seen: ids the repetition penalty applies to.
        vocab_size: ids from here on are padding and are never drawn.

    Returns:
        The token id. Among equal logits the lower id ranks first.
    """
    sampling = sampling or Sampling()
    scores = adjusted(logits, sampling, seen=seen, vocab_size=vocab_size)
    if sampling.temperature == 0:
        return int(scores.argmax())
    kept = keep(scores, sampling)
    return int(kept.ids[_drawn(kept, rng())])


def settled_token(scores: Floats, u: float, sampling: Sampling, tolerance: float) -> int | None:
    """The token to draw, or ``None`` if moving every logit by up to ``tolerance`` might change it.

    ``None`` near a tie: between the two best (greedy), at the edge of a filter, or with ``u`` close
    to the boundary between two tokens. Cautious: it may be ``None`` where the draw would hold.

    Args:
        scores: adjusted scores (V,).
        u: the uniform number of the draw.
        sampling: the settings.
        tolerance: bound on the error of a logit, after the repetition penalty.
    """
    if scores.size == 1:
        return 0
    if sampling.temperature == 0:
        second, first = np.partition(scores, -2)[-2:]
        return int(scores.argmax()) if first - second > 2 * tolerance else None
    shift = tolerance / sampling.temperature
    order, probs, surely, maybe = _edges(scores, sampling, 2 * shift)
    if surely == 0:  # the best two are tied
        return None
    kept = _in_id_order(order[:surely], probs[:surely])
    upper = np.cumsum(kept.probs)
    index = min(int(np.searchsorted(upper, u, side="right")), upper.size - 1)
    uncertain = float(probs[surely:maybe].sum() / probs[:surely].sum())
    for boundary in (float(upper[index - 1]) if index else 0.0, float(upper[index])):
        # Scores shifted by ±s move a cumulative probability F by at most 2s F(1 - F), to first
        # order (a tenth is added for the rest); 0 and 1 stay.
        error = 2.2 * shift * boundary * (1 - boundary) + uncertain + 1e-12
        if abs(u - boundary) <= error and (uncertain or 0 < boundary < upper[-1]):
            return None
    return int(kept.ids[index])


def log_softmax(logits: Any, vocab_size: int | None = None) -> Floats:
    """Log-probabilities (V,) in nats of the unfiltered model, padding left out."""
    scores: Floats = np.asarray(logits, dtype=np.float64)[:vocab_size]
    shifted: Floats = scores - scores.max()
    logprobs: Floats = shifted - np.log(np.exp(shifted).sum())
    return logprobs


def _ranked(scores: Floats, top_k: int, slack: float = 0.0) -> tuple[Ids, Floats]:
    """The ``top_k`` best ids (and those up to ``slack`` below), best first, with probabilities."""
    ids = np.arange(scores.size)
    if 0 < top_k < scores.size:
        edge = np.partition(scores, -top_k)[-top_k]
        ids = np.flatnonzero(scores >= edge - slack)
    order = ids[_best_first(scores[ids])]
    if top_k and not slack:
        order = order[:top_k]
    weights = np.exp(scores[order] - scores[order[0]])
    return order, weights / weights.sum()


def _best_first(scores: Floats) -> Ids:
    """Indices by falling score, equal scores by index."""
    order = np.argsort(-scores)
    ranked = scores[order]
    if (ranked[1:] == ranked[:-1]).any():  # the stable sort is several times slower
        return np.argsort(-scores, kind="stable")
    return order


def _count(probs: Floats, sampling: Sampling, error: float = 0.0) -> int:
    """How many of the ranked tokens top-p and min-p leave; ``error`` > 0 loosens, < 0 tightens."""
    count = probs.size
    if sampling.top_p < 1:
        before = np.cumsum(probs) - probs
        count = int(np.searchsorted(before, sampling.top_p * (1 + 2 * error), side="left"))
    if sampling.min_p > 0:
        count = min(count, int((probs >= probs[0] * sampling.min_p * (1 - error)).sum()))
    return max(count, 1)


def _edges(scores: Floats, sampling: Sampling, slack: float) -> tuple[Ids, Floats, int, int]:
    """Ranked ids and probabilities, how many surely pass the filters, and how many may."""
    order, probs = _ranked(scores, sampling.top_k, slack)
    ranked = scores[order]
    size = order.size
    surely = maybe = size
    if 0 < sampling.top_k < scores.size:
        k = sampling.top_k
        surely = int((ranked > ranked[k] + slack).sum()) if k < size else k
    extra = 2 * slack + float(probs[surely:].sum())  # relative error of cumulative probability
    tight, loose = _count(probs, sampling, -extra), _count(probs, sampling, extra)
    if tight < size:
        surely = min(surely, int((ranked > ranked[tight] + slack).sum()))
    if loose < size:
        maybe = int((ranked >= ranked[loose - 1] - slack).sum())
    return order, probs, surely, max(maybe, surely)


def _in_id_order(ids: Ids, probs: Floats) -> Kept:
    by_id = np.argsort(ids)
    return Kept(ids[by_id], probs[by_id] / probs.sum())


def _drawn(kept: Kept, u: float) -> int:
    """Index of the token whose share of [0, 1) holds ``u``."""
    upper = np.cumsum(kept.probs)
    return min(int(np.searchsorted(upper, u * upper[-1], side="right")), upper.size - 1)
