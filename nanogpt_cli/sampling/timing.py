"""How fast a model samples: the cached path, and the naive one beside it in the same run."""

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
from nanogpt_cli.sampling.sampler import Plan, generate, reference_logits
from nanogpt_cli.sampling.weights import Weights

# Context lengths at which the naive path is timed; its cost in between is nearly linear.
_NAIVE_LENGTHS = 9


@dataclass(frozen=True)
class Rate:
    """One way of sampling, measured.

    Attributes:
        first_s: seconds to the first token, the prompt included.
        token_s: median seconds between tokens after the first.
        slow_s: the 95th percentile of the same.
        tokens_per_s: over the whole text, all samples together, the prompt included.
    """

    first_s: float
    token_s: float
    slow_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Report:
    """The result of ``measure``.

    Attributes:
        cached: the fast path, median over the repeats.
        naive: the module on the whole context for each token, one sample.
        naive_lengths: context lengths at which ``naive`` was timed.
        rivals: tokens/s of other programs' samplers on the same weights, by name.
        rival_threads: the CPU threads each of them was fastest with.
        cache_bytes: size of the key/value cache.
        weight_bytes: size of the weights it reads.
        packed_bytes: size of the copy laid out for few rows; 0 without one.
    """

    cached: Rate
    naive: Rate
    naive_lengths: tuple[int, ...]
    rivals: dict[str, float]
    rival_threads: dict[str, int]
    cache_bytes: int
    weight_bytes: int
    packed_bytes: int


# Takes a prompt and a number of new tokens and makes that many.
Rival = Callable[[Sequence[int], int], object]


def measure(
    model: GPT,
    prompt: Sequence[int],
    plan: Plan,
    *,
    repeats: int = 3,
    rivals: dict[str, Rival] | None = None,
    rival_threads: Sequence[int] = (),
    report: Callable[[str], None] = lambda _: None,
) -> Report:
    """Time sampling of ``plan.max_new_tokens`` tokens, the ways taking turns.

    Args:
        model: in evaluation mode.
        prompt: ids; with the new tokens they should fit the context.
        plan: what to sample.
        repeats: turns of each way; medians are reported.
        rivals: other samplers to time in the same turns.
        rival_threads: thread counts a rival is tried with in the first turn; it keeps the
            fastest. The present one when empty.
        report: receives a line of commentary at a time.
    """
    rivals = rivals or {}
    lengths = _lengths(len(prompt), plan.max_new_tokens)
    cached: list[Rate] = []
    naive: list[list[float]] = []
    others = {name: _Turns(rival, rival_threads) for name, rival in rivals.items()}
    list(generate(model, [prompt], replace(plan, max_new_tokens=2)))  # warm up
    for turn in range(repeats):
        report(f"turn {turn + 1} of {repeats}")
        cached.append(_rate(_gaps(model, prompt, plan), plan.samples))
        naive.append([_seconds_naive(model, prompt, plan, length) for length in lengths])
        for other in others.values():
            other.take(prompt, plan.max_new_tokens)
    weights = plan.weights or Weights.of(model)
    decoder = Decoder(weights, plan.samples)
    return Report(
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
    """A rival's turns, with the number of threads that suits it best."""

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
    """Context lengths spread evenly over the text, its ends included."""
    steps = min(_NAIVE_LENGTHS, new) - 1
    return [prompt + (new - 1) * i // steps for i in range(steps + 1)] if steps else [prompt]


def _gaps(model: GPT, prompt: Sequence[int], plan: Plan) -> Iterator[float]:
    """Seconds until each position's tokens have come."""
    last = time.perf_counter()
    for came, _ in enumerate(generate(model, [prompt], plan), start=1):
        if came % plan.samples == 0:
            now = time.perf_counter()
            yield now - last
            last = now


def _rate(gaps: Iterator[float], samples: int) -> Rate:
    first, *rest = gaps
    rest = sorted(rest) or [first]
    slow = rest[min(len(rest) - 1, int(0.95 * len(rest)))]
    count = (len(rest) + 1 if rest[0] is not first else 1) * samples
    total = first + (sum(rest) if rest[0] is not first else 0.0)
    return Rate(first, statistics.median(rest), slow, count / total)


def _seconds_naive(model: GPT, prompt: Sequence[int], plan: Plan, length: int) -> float:
    """Seconds for one token of the naive path after ``length`` tokens."""
    window = [*prompt, *[prompt[-1]] * (length - len(prompt))][-model.config.block_size :]
    start = time.perf_counter()
    logits = reference_logits(model, window)
    next_token(logits, 0, plan.sampling, vocab_size=plan.vocab_size)
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
