"""How weights decode fastest on this machine: threads, layout, and whether a draft helps."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nanogpt_cli.sampling.decode import Decoder
from nanogpt_cli.sampling.speculate import AHEAD, USUALLY_RIGHT
from nanogpt_cli.sampling.weights import Weights


@dataclass(frozen=True)
class Tuning:
    """The result of ``tune``.

    Attributes:
        threads: the best number of threads for decoding.
        packed: whether the weights are now packed.
        drafts: whether the weights now have a draft.
        seconds: time of a step on the first layers, by (threads, packed).
    """

    threads: int
    packed: bool
    drafts: bool
    seconds: dict[tuple[int, bool], float]


# Too much for the processor's caches, whose speed would be measured otherwise.
_PROBED_BYTES = 48 << 20


def thread_counts(most: int) -> list[int]:
    """The thread counts worth trying on ``most`` cores: powers of two."""
    return [1 << n for n in range(most.bit_length())]


def tune(weights: Weights, counts: Sequence[int]) -> Tuning:
    """Find the thread count and weight layout with the fastest decode step, and apply the layout.

    On busy cores two threads can be far slower than one, so the choice is measured, on the first
    layers. More threads must be at least a tenth faster. So must speculation, for which the weights
    then get a draft (``sampling.speculate``). The thread setting is restored.

    Args:
        weights: not packed yet.
        counts: thread counts to try, ascending.
    """
    layouts = {False: Decoder(weights.first(_PROBED_BYTES), 1)}
    if weights.can_pack():
        part = weights.first(_PROBED_BYTES)
        part.pack()
        layouts[True] = Decoder(part, 1)
    seconds = dict.fromkeys(((n, packed) for packed in layouts for n in counts), math.inf)
    before = torch.get_num_threads()
    try:
        for _ in range(3):  # in turns, so that a busy moment does not affect one candidate only
            for threads, packed in seconds:
                torch.set_num_threads(threads)
                took = _step_seconds(layouts[packed])
                seconds[threads, packed] = min(seconds[threads, packed], took)
    finally:
        torch.set_num_threads(before)
    best = min(seconds, key=lambda way: seconds[way] * (1.0 if way[0] == counts[0] else 1.1))
    if best[1]:
        weights.pack()
    # A draft takes less memory than tiles do.
    if True in layouts and _draft_pays(layouts[best[1]], best[0], seconds[best]):
        weights.draft = weights.in_int8()
    return Tuning(*best, weights.draft is not None, seconds)


def _draft_pays(decoder: Decoder, threads: int, step: float) -> bool:
    """Whether drafting and checking takes less time a token than a step of so many seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        draft = Decoder(decoder.weights.in_int8(), 1)
        drafted = min(_step_seconds(draft) for _ in range(3))
        checked = min(_check_seconds(decoder) for _ in range(3))
    finally:
        torch.set_num_threads(before)
    return (AHEAD - 1) * drafted + checked < 0.9 * USUALLY_RIGHT * AHEAD * step


def _check_seconds(decoder: Decoder) -> float:
    tokens = [0] * min(AHEAD, decoder.config.block_size)
    start = time.perf_counter()
    decoder.extend(0, tokens, 0)
    return time.perf_counter() - start


def _step_seconds(decoder: Decoder) -> float:
    """Seconds of the faster of two steps; the first one wakes the threads."""
    found = []
    for length in range(2):
        start = time.perf_counter()
        decoder.step([0], [0], [min(length, decoder.config.block_size - 1)])
        found.append(time.perf_counter() - start)
    return min(found)
