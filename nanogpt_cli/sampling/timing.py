"""Measure how fast a model samples, with the cached path and the naive one in the same run."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.sampling.decode import Decoder
from nanogpt_cli.sampling.filters import next_token
from nanogpt_cli.sampling.sampler import GenerationConfig, generate, reference_logits
from nanogpt_cli.sampling.weights import Weights

# Number of context lengths at which the naive path is timed; its cost is nearly linear in between.
_NAIVE_LENGTHS = 9


@dataclass(frozen=True)
class Rate:
    """The measured speed of one way of sampling.

    Attributes:
        first_s: seconds until the first token, including the prompt.
        token_s: mean seconds between tokens after the first. (A pass ahead gives several at once.)
        slow_s: 95th percentile of the seconds between tokens.
        tokens_per_s: throughput of all samples over the whole text, including the prompt.
    """

    first_s: float
    token_s: float
    slow_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Timing:
    """The result of ``time_sampling``.

    Attributes:
        cached: speed of the fast path, median over the repeats.
        naive: speed of running the module on the whole context for each token, with one sample.
        naive_lengths: context lengths at which ``naive`` was timed.
        rivals: tokens/s of other programs' samplers on the same weights, by name.
        rival_threads: number of CPU threads with which each of them was fastest.
        cache_bytes: size of the key/value cache.
        weight_bytes: size of the weights that the fast path reads.
        packed_bytes: size of the packed copy of the weights; 0 without one.
    """

    cached: Rate
    naive: Rate
    naive_lengths: tuple[int, ...]
    rivals: dict[str, float]
    rival_threads: dict[str, int]
    cache_bytes: int
    weight_bytes: int
    packed_bytes: int


# Generates a number of new tokens from a prompt.
Rival = Callable[[Sequence[int], int], object]


def time_sampling(
    model: GPT,
    prompt: Sequence[int],
    generation: GenerationConfig,
    *,
    repeats: int = 3,
    rivals: dict[str, Rival] | None = None,
    rival_threads: Sequence[int] = (),
    report: Callable[[str], None] = lambda _: None,
) -> Timing:
    """Time sampling of ``generation.max_new_tokens`` tokens; all ways of sampling take turns.

    Args:
        model: in evaluation mode.
        prompt: token ids; together with the new tokens they should fit the context.
        generation: what to generate.
        repeats: number of turns; medians are returned.
        rivals: other samplers to time in the same turns.
        rival_threads: thread counts to try with each rival in the first turn, after which it keeps
            the fastest; the current setting if empty.
        report: receives commentary, line by line.
    """
    rivals = rivals or {}
    lengths = _lengths(len(prompt), generation.max_new_tokens)
    cached: list[Rate] = []
    naive: list[list[float]] = []
    others = {name: _Turns(rival, rival_threads) for name, rival in rivals.items()}
    list(generate(model, [prompt], replace(generation, max_new_tokens=2)))  # warm up
    for turn in range(repeats):
        report(f"turn {turn + 1} of {repeats}")
        cached.append(_rate(_gaps(model, prompt, generation), generation.samples))
        naive.append([_seconds_naive(model, prompt, generation, length) for length in lengths])
        for other in others.values():
            other.take(prompt, generation.max_new_tokens)
    weights = generation.weights or Weights.of(model)
    decoder = Decoder(weights, generation.samples)
    return Timing(
        cached=_median(cached),
        naive=_naive_rate(naive),
        naive_lengths=tuple(lengths),
        rivals={name: other.tokens_per_s() for name, other in others.items()},
        rival_threads={name: other.threads() for name, other in others.items()},
        cache_bytes=decoder.cache_bytes,
        weight_bytes=model.n_parameters() * decoder.cache.element_size(),
        packed_bytes=weights.packed_bytes,
    )


class _Turns:
    """The turns of a rival, run with the number of threads that is fastest for it."""

    def __init__(self, rival: Rival, threads: Sequence[int]) -> None:
        self.rival = rival
        self.speeds: dict[int, list[float]] = {n: [] for n in threads or [torch.get_num_threads()]}

    def take(self, prompt: Sequence[int], new: int) -> None:
        counts = [self.threads()] if any(self.speeds.values()) else list(self.speeds)
        before = torch.get_num_threads()
        try:
            for threads in counts:
                torch.set_num_threads(threads)
                start = time.perf_counter()
                self.rival(prompt, new)
                self.speeds[threads].append(new / (time.perf_counter() - start))
        finally:
            torch.set_num_threads(before)

    def threads(self) -> int:
        return max(self.speeds, key=lambda n: statistics.median(self.speeds[n]))

    def tokens_per_s(self) -> float:
        return statistics.median(self.speeds[self.threads()])


def _lengths(prompt: int, new: int) -> list[int]:
    """Context lengths spread evenly over the text, including both ends."""
    steps = min(_NAIVE_LENGTHS, new) - 1
    return [prompt + (new - 1) * i // steps for i in range(steps + 1)] if steps else [prompt]


def _gaps(model: GPT, prompt: Sequence[int], generation: GenerationConfig) -> Iterator[float]:
    """Yield the seconds that each position's tokens took."""
    last = time.perf_counter()
    for came, _ in enumerate(generate(model, [prompt], generation), start=1):
        if came % generation.samples == 0:
            now = time.perf_counter()
            yield now - last
            last = now


def _rate(gaps: Iterator[float], samples: int) -> Rate:
    first, *rest = gaps
    rest = sorted(rest) or [first]
    slow = rest[min(len(rest) - 1, int(0.95 * len(rest)))]
    count = (len(rest) + 1 if rest[0] is not first else 1) * samples
    total = first + (sum(rest) if rest[0] is not first else 0.0)
    return Rate(first, statistics.fmean(rest), slow, count / total)


def _seconds_naive(
    model: GPT, prompt: Sequence[int], generation: GenerationConfig, length: int
) -> float:
    """Seconds that the naive path takes for one token after ``length`` tokens."""
    window = [*prompt, *[prompt[-1]] * (length - len(prompt))][-model.config.block_size :]
    start = time.perf_counter()
    logits = reference_logits(model, window)
    next_token(logits, 0, generation.sampling, vocab_size=generation.vocab_size)
    return time.perf_counter() - start


def _naive_rate(turns: list[list[float]]) -> Rate:
    seconds = [statistics.median(values) for values in zip(*turns, strict=True)]
    pairs = list(itertools.pairwise(seconds))
    mean = statistics.fmean((a + b) / 2 for a, b in pairs) if pairs else seconds[0]
    return Rate(seconds[0], statistics.median(seconds), max(seconds), 1 / mean)


def _median(rates: list[Rate]) -> Rate:
    middle = statistics.median
    return Rate(
        middle(r.first_s for r in rates),
        middle(r.token_s for r in rates),
        middle(r.slow_s for r in rates),
        middle(r.tokens_per_s for r in rates),
    )
