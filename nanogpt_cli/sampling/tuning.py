"""How weights decode fastest on this machine: threads, layout, and whether a draft helps."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nanogpt_cli.sampling.decode import Decoder
from nanogpt_cli.sampling.pace import LENGTHS, Pace
from nanogpt_cli.sampling.weights import Draft, Weights


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
_TURNS = 3


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
        # In turns, so that a busy moment does not affect one candidate only.
        for _ in range(_TURNS):
            for threads, packed in seconds:
                torch.set_num_threads(threads)
                took = _step_seconds(layouts[packed])
                seconds[threads, packed] = min(seconds[threads, packed], took)
    finally:
        torch.set_num_threads(before)
    best = min(seconds, key=lambda way: seconds[way] * (1.0 if way[0] == counts[0] else 1.1))
    if best[1]:
        weights.pack()
    if True in layouts:  # a draft takes less memory than tiles do
        pace = _pace(layouts[best[1]], best[0], seconds[best])
        if pace.length() > 1:
            weights.draft = Draft(weights.in_int8(), pace)
    return Tuning(*best, weights.draft is not None, seconds)


def _pace(decoder: Decoder, threads: int, step: float) -> Pace:
    """The times of decoding with a draft; ``step`` is the time of a step without one."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        drafting = Decoder(decoder.weights.in_int8(), 1)
        most = decoder.config.block_size
        proposal = min(_step_seconds(drafting) for _ in range(_TURNS))
        turns = [
            {n: _pass_seconds(decoder, drafting, n) for n in LENGTHS if n <= most}
            for _ in range(_TURNS)
        ]
        check = {n: min(turn[n] for turn in turns) - proposal for n in turns[0]}
    finally:
        torch.set_num_threads(before)
    return Pace(step, proposal, check)


def _pass_seconds(decoder: Decoder, drafting: Decoder, n: int) -> float:
    """Seconds to check n tokens and to propose one, for which the draft is read into caches."""
    start = time.perf_counter()
    decoder.extend(0, [0] * n, 0)
    drafting.step([0], [0], [0])
    return time.perf_counter() - start


def _step_seconds(decoder: Decoder) -> float:
    """Seconds of the faster of two steps; the first one wakes the threads."""
    found = []
    for length in range(2):
        start = time.perf_counter()
        decoder.step([0], [0], [min(length, decoder.config.block_size - 1)])
        found.append(time.perf_counter() - start)
    return min(found)
