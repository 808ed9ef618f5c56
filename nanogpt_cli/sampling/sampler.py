"""Sampling from a GPT: tokens one by one, many sequences in parallel.

Two paths give the same tokens. The naive one runs the module on the whole context for each token
and sequence, as nanoGPT's ``generate`` does. The cached one (``sampling.decode``) differs from it
by rounding only; where rounding could change a draw (``filters.settled_token``), it takes that
position's logits from the naive path. The tokens are therefore identical as long as the float32
logits of the two paths differ by less than ``RELATIVE_TOLERANCE`` allows. Both paths multiply in
full float32, also within a run that allows TF32, whose 10 bits would make nearly every draw a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from nanogpt_cli.machine.formats import full_float32
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.sampling import filters
from nanogpt_cli.sampling.decode import Decoder, window_start
from nanogpt_cli.sampling.filters import next_token as next_token
from nanogpt_cli.sampling.settings import Sampling
from nanogpt_cli.sampling.speculate import Speculation
from nanogpt_cli.sampling.weights import Weights

Context = Literal["slide", "roll"]
# Bound on |cached - naive| logits, as a share of the largest |logit|. The largest difference seen
# on the shapes of the tests and on that of GPT-2 124M (weights of std 0.1) is half of it.
RELATIVE_TOLERANCE = 2.0**-15


@dataclass(frozen=True, slots=True)
class Token:
    """One drawn token.

    Attributes:
        prompt: index of the prompt.
        sample: index among the samples of that prompt.
        position: 0 for the first new token.
        id: the token id.
        logprob: its log-probability in nats without temperature or filters; NaN unless requested.
        runners_up: the most probable (id, log-probability) pairs, as many as requested.
    """

    prompt: int
    sample: int
    position: int
    id: int
    logprob: float = float("nan")
    runners_up: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class _Sequence:
    """A sequence in progress: its indices, all its ids, and what the cache holds of it."""

    prompt: int
    sample: int
    ids: list[int]
    new: int = 0
    start: int = -1  # window start of the cached positions; -1: nothing cached
    cached: int = 0  # positions in the cache

    def window(self, block_size: int, stride: int) -> list[int]:
        return self.ids[window_start(len(self.ids), block_size, stride) :]


@dataclass
class GenerationConfig:
    """What ``generate`` should generate, and how.

    Attributes:
        max_new_tokens: at most this many tokens per sequence.
        samples: number of sequences per prompt.
        sampling: temperature and filters.
        seed: seed of all draws; see ``filters.draw_key``.
        first_sample: index of the first sample, to draw part of a larger set.
        vocab_size: ids from here on are never drawn (padding of the embedding).
        stop_ids: a sequence ends when one of these is drawn; the token is still yielded.
        context: what to read beyond the block size. "slide" reads the last ``block_size`` tokens
            for each new token (exact, like nanoGPT); "roll" drops half of the block whenever it is
            full.
        cached: False takes the naive path.
        exact: whether the cached path resolves near-ties with naive logits; useless below float32.
        logprobs: number of runners-up to report with each token; ``None`` for no log-probabilities.
        weights: weights for the cached path, shared between calls; they may be packed or have
            another dtype. ``None`` takes the model's own.
    """

    max_new_tokens: int
    samples: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    first_sample: int = 0
    vocab_size: int | None = None
    stop_ids: frozenset[int] = frozenset()
    context: Context = "slide"
    cached: bool = True
    exact: bool = True
    logprobs: int | None = None
    weights: Weights | None = None


@full_float32()
@torch.inference_mode()
def reference_logits(model: GPT, window: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits (V,) float32 after ``window`` from the module itself: the slow reference.

    Sequences are computed one at a time, so that the result does not depend on the batch.
    """
    idx = torch.tensor([list(window)], device=model.lm_head.weight.device)
    x = model.stream(idx)
    logits: np.ndarray[Any, np.dtype[np.float32]] = model.head(x[:, -1])[0].float().cpu().numpy()
    return logits


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    generation: GenerationConfig,
    *,
    done: Callable[[Token], bool] | None = None,
) -> Iterator[Token]:
    """Continue prompts and yield each token when drawn, position by position over all sequences.

    Args:
        model: in evaluation mode.
        prompts: token ids, at least one each; they may be longer than the block.
        generation: what to generate, and how.
        done: called with each token; returning True ends its sequence.

    Raises:
        ValueError: a prompt is empty or contains an id outside the embedding.
    """
    _check(model, prompts)
    active = [
        _Sequence(p, generation.first_sample + s, list(ids))
        for p, ids in enumerate(prompts)
        for s in range(generation.samples)
    ]
    if generation.max_new_tokens < 1 or not active:
        return
    source = (
        _Cached(model, len(active), generation) if generation.cached else _Naive(model, generation)
    )
    while active:
        going = []
        for sequence, logits in zip(active, source.logits(active), strict=True):
            token = _draw(model, sequence, logits, generation)
            sequence.ids.append(token.id)
            sequence.new += 1
            ends = done is not None and done(token)
            yield token
            if not (
                ends or token.id in generation.stop_ids or sequence.new >= generation.max_new_tokens
            ):
                going.append(sequence)
        active = going


def _check(model: GPT, prompts: Sequence[Sequence[int]]) -> None:
    for number, ids in enumerate(prompts):
        if not ids:
            raise ValueError(f"prompt {number} is empty")
        if not 0 <= min(ids) <= max(ids) < model.config.vocab_size:
            raise ValueError(
                f"prompt {number} contains an id outside 0..{model.config.vocab_size - 1}"
            )


def _stride(model: GPT, generation: GenerationConfig) -> int:
    return 1 if generation.context == "slide" else max(1, model.config.block_size // 2)


def _draw(model: GPT, sequence: _Sequence, logits: Any, generation: GenerationConfig) -> Token:
    sampling = generation.sampling
    key = filters.draw_key(generation.seed, sequence.prompt, sequence.sample, sequence.new)
    # The ids are only read, and made a set, if the penalty is on.
    seen = sequence.ids if sampling.repetition_penalty != 1.0 else ()
    scores = filters.adjusted(logits, sampling, seen=seen, vocab_size=generation.vocab_size)
    chosen: int | None = None
    if generation.cached and generation.exact:
        chosen = filters.settled_token(scores, key, sampling, _tolerance(logits, sampling))
        if chosen is None:
            window = sequence.window(model.config.block_size, _stride(model, generation))
            logits = reference_logits(model, window)
    if chosen is None:
        chosen = next_token(logits, key, sampling, seen=seen, vocab_size=generation.vocab_size)
    place = (sequence.prompt, sequence.sample, sequence.new, chosen)
    if generation.logprobs is None:
        return Token(*place)
    logprobs = filters.log_softmax(logits, generation.vocab_size)
    best = np.argsort(-logprobs, kind="stable")[: generation.logprobs]
    return Token(*place, float(logprobs[chosen]), tuple((int(i), float(logprobs[i])) for i in best))


def _tolerance(logits: Any, sampling: Sampling) -> float:
    penalty = max(sampling.repetition_penalty, 1 / sampling.repetition_penalty)
    return RELATIVE_TOLERANCE * penalty * max(float(np.abs(logits).max()), 1.0)


class _Naive:
    def __init__(self, model: GPT, generation: GenerationConfig) -> None:
        self.model, self.stride = model, _stride(model, generation)

    def logits(self, active: Sequence[_Sequence]) -> list[Any]:
        size = self.model.config.block_size
        return [reference_logits(self.model, s.window(size, self.stride)) for s in active]


class _Cached:
    """Drives a ``Decoder``: appends each sequence's last token, or fills its slot anew."""

    def __init__(self, model: GPT, rows: int, generation: GenerationConfig) -> None:
        self.decoder = Decoder(generation.weights or Weights.of(model), rows)
        self.block_size, self.stride = model.config.block_size, _stride(model, generation)
        self.slots: list[_Sequence] = []
        self.generation = generation
        self.speculation: Speculation | None = None

    @full_float32()
    def logits(self, active: Sequence[_Sequence]) -> list[Any]:
        self._assign(active)
        fresh: dict[int, list[int]] = {}  # slots to fill anew, by window length
        append: list[int] = []
        for slot, sequence in enumerate(active):
            start = window_start(len(sequence.ids), self.block_size, self.stride)
            size = len(sequence.ids) - start
            if start == sequence.start and sequence.cached == size - 1:
                append.append(slot)
            else:
                fresh.setdefault(size, []).append(slot)
            sequence.start, sequence.cached = start, size
        rows: dict[int, Any] = {}
        for slots in fresh.values():
            windows = [active[slot].ids[active[slot].start :] for slot in slots]
            rows.update(zip(slots, self.decoder.prefill(slots, windows).cpu().numpy(), strict=True))
        if len(active) == 1 and append and self._speculates():
            rows[0] = self._ahead(active[0])
        elif append:
            tokens = [active[slot].ids[-1] for slot in append]
            lengths = [active[slot].cached - 1 for slot in append]
            step = self.decoder.step(append, tokens, lengths)
            rows.update(zip(append, step.cpu().numpy(), strict=True))
        return [rows[slot] for slot in range(len(active))]

    def _speculates(self) -> bool:
        """Whether a draft helps; weights may get one between two tokens."""
        if self.speculation is None and (draft := self.decoder.weights.draft) is not None:
            self.speculation = Speculation(self.decoder, draft)
        return self.speculation is not None and self.speculation.helps

    def _ahead(self, sequence: _Sequence) -> Any:
        assert self.speculation is not None
        settings = self.generation
        sampling = settings.sampling

        def draw(logits: Any, new: Sequence[int]) -> int:
            place = sequence.prompt, sequence.sample, sequence.new + len(new)
            seen = (*sequence.ids, *new) if sampling.repetition_penalty != 1.0 else ()
            key = filters.draw_key(settings.seed, *place)
            return next_token(logits, key, sampling, seen=seen, vocab_size=settings.vocab_size)

        most = settings.max_new_tokens - sequence.new
        return self.speculation.logits(sequence.ids[-1], sequence.cached - 1, most, draw)

    def _assign(self, active: Sequence[_Sequence]) -> None:
        """Drop the cache rows of sequences that have ended."""
        if not self.slots:
            self.slots = list(active)
        elif len(active) < len(self.slots):
            self.decoder.keep([i for i, s in enumerate(self.slots) if any(s is a for a in active)])
            self.slots = list(active)
