"""Which tokens a step sees: a pure function of (seed, step, slot), so resuming needs no state.

A slot is one sequence of a step's global batch. How slots are spread over micro-batches and
processes does not change what is in them.

``shuffle`` visits every window of an epoch once, in an order given by a keyed permutation: a
balanced Feistel network on the next even power of two, walked until it lands inside (Black and
Rogaway 2002, "Ciphers with arbitrary finite domains"). Each epoch shifts the window grid by a
random phase. ``random`` draws crops independently as nanoGPT does, but from a hash of the counter
instead of a generator with state. The hash is SplitMix64's finaliser (Steele et al. 2014).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nanogpt_cli.machine.hashing import mix

Offsets = npt.NDArray[np.int64]

_ROUNDS = 6
# Slots whose windows are computed together.
_CHUNK = 4096


def permute(
    index: npt.NDArray[np.int64], size: int, *keys: int | npt.NDArray[np.uint64]
) -> Offsets:
    """Images of ``index`` (0 ≤ index < size) under permutations of range(size) named by keys.

    A key is an integer for all of them, or an array with one for each.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    x = index.astype(np.uint64)
    todo = np.ones(x.shape, dtype=bool)
    while todo.any():
        left, right = x[todo] >> shift, x[todo] & mask
        of_todo = [key[todo] if isinstance(key, np.ndarray) else key for key in keys]
        for round_ in range(_ROUNDS):
            left, right = right, left ^ (mix(right, *of_todo, round_) & mask)
        x[todo] = (left << shift) | right
        todo = x >= size
    return x.astype(np.int64)


@dataclass(frozen=True)
class Windows:
    """The windows of a training split.

    Attributes:
        seed: the run's seed.
        n_tokens: tokens in the split.
        block_size: tokens a sequence predicts, T; a window has T + 1 tokens.
        batch: slots of one step, over all micro-batches and processes.
        order: "shuffle" or "random".
    """

    seed: int
    n_tokens: int
    block_size: int
    batch: int
    order: str = "shuffle"

    def __post_init__(self) -> None:
        if self.n_tokens < self.block_size + 1:
            raise ValueError(
                f"{self.n_tokens} tokens are too few for a block_size of {self.block_size}"
            )

    @property
    def per_epoch(self) -> int:
        """Windows an epoch visits; up to one window is left out so that the grid can shift."""
        return max(1, (self.n_tokens - 1) // self.block_size - 1)

    def offsets(self, step: int, slots: range) -> Offsets:
        """Start of the window of each slot of ``step`` (steps count from 0)."""
        start, stop = (step * self.batch + slot for slot in (slots.start, slots.stop))
        numbers = range(start // _CHUNK, (max(start, stop - 1)) // _CHUNK + 1)
        first = numbers.start * _CHUNK
        chunks = [_chunk(self, number) for number in numbers]
        found = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        return found[start - first : stop - first]

    def at(self, index: npt.NDArray[np.int64]) -> Offsets:
        """Start of the windows of these slots, numbered through the whole run."""
        if self.order == "random":
            choices = self.n_tokens - self.block_size
            return (mix(index.astype(np.uint64), self.seed, 1) % np.uint64(choices)).astype(
                np.int64
            )
        epochs = (index // self.per_epoch).astype(np.uint64)
        place = permute(index % self.per_epoch, self.per_epoch, self.seed, 2, epochs)
        slack = self.n_tokens - 1 - self.per_epoch * self.block_size
        room = min(slack + 1, self.block_size)
        phase = (mix(epochs, self.seed, 3) % np.uint64(room)).astype(np.int64)
        return place * self.block_size + phase


@functools.lru_cache(maxsize=4)
def _chunk(windows: Windows, number: int) -> Offsets:
    """Many slots at once: hashing them one step at a time would cost more than a small model."""
    return windows.at(np.arange(number * _CHUNK, (number + 1) * _CHUNK, dtype=np.int64))


def fetch(
    tokens: npt.NDArray[np.integer], offsets: Offsets, block_size: int
) -> npt.NDArray[np.int64]:
    """The windows at ``offsets`` as int64 ids, shape (len(offsets), block_size + 1)."""
    windows: npt.NDArray[np.int64] = tokens[offsets[:, None] + np.arange(block_size + 1)].astype(
        np.int64
    )
    return windows
