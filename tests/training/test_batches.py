from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_cli.machine.hashing import mix
from nanogpt_cli.training.batches import Windows, fetch, permute


@given(size=st.integers(1, 3000), key=st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_bijection(size: int, key: int) -> None:
    images = permute(np.arange(size), size, key, 2)
    assert sorted(images.tolist()) == list(range(size))


def test_permutation_looks_random() -> None:
    size = 10_000
    images = permute(np.arange(size), size, 1337, 2, 0)
    assert abs(np.corrcoef(np.arange(size), images)[0, 1]) < 0.03
    neighbours = np.abs(np.diff(images))
    assert 0.95 < neighbours.mean() / (size / 3) < 1.05  # mean distance of two uniform draws
    assert not np.array_equal(images, permute(np.arange(size), size, 1337, 2, 1))


def test_permutations_computed_together_are_those_of_each_key() -> None:
    index, epochs = np.arange(90) % 9, np.arange(90, dtype=np.uint64) // 9
    together = permute(index, 9, 1337, 2, epochs)
    alone = [permute(np.arange(9), 9, 1337, 2, epoch) for epoch in range(10)]
    assert np.array_equal(together, np.concatenate(alone))


def test_hash_bits_are_balanced() -> None:
    values = mix(np.arange(20_000, dtype=np.uint64), 5)
    bits = (values[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.all(np.abs(bits.mean(0) - 0.5) < 0.02)


@pytest.mark.parametrize("order", ["shuffle", "random"])
def test_a_step_is_the_same_under_any_split(order: str) -> None:
    windows = Windows(seed=3, n_tokens=5000, block_size=32, batch=24, order=order)
    for step in (0, 5, 6, 7, 41):  # 5..7 cross the end of an epoch
        whole = windows.offsets(step, range(24))
        for size in (1, 3, 8):
            parts = [windows.offsets(step, range(i, i + size)) for i in range(0, 24, size)]
            assert np.array_equal(whole, np.concatenate(parts))


def test_shuffle_visits_every_window_once_an_epoch_on_a_shifting_grid() -> None:
    windows = Windows(seed=3, n_tokens=5000, block_size=32, batch=10)
    count = windows.per_epoch
    assert count == (5000 - 1) // 32 - 1
    steps = [windows.offsets(step, range(10)) for step in range(3 * count // 10 + 1)]
    flat = np.concatenate(steps)
    phases = set()
    for epoch in range(3):
        visited = np.sort(flat[epoch * count : (epoch + 1) * count])
        assert np.array_equal(np.diff(visited), np.full(count - 1, 32))
        phases.add(int(visited[0]) % 32)
    assert len(phases) > 1
    assert flat.min() >= 0
    assert flat.max() + 33 <= 5000


def test_random_crops_are_uniform_and_reach_both_ends() -> None:
    windows = Windows(seed=1, n_tokens=300, block_size=16, batch=64, order="random")
    seen = np.concatenate([windows.offsets(s, range(64)) for s in range(400)])
    counts = np.bincount(seen, minlength=284)
    assert len(counts) == 284  # starts 0..283, so that the last window ends with the last token
    expected = len(seen) / 284
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 284 + 5 * np.sqrt(2 * 284)


def test_the_smallest_split_works_and_a_smaller_one_is_refused() -> None:
    windows = Windows(seed=1, n_tokens=17, block_size=16, batch=2)
    tokens = np.arange(17, dtype=np.uint16)
    batch = fetch(tokens, windows.offsets(9, range(2)), 16)
    assert batch.shape == (2, 17)
    assert batch.dtype == np.int64
    assert batch[0].tolist() == list(range(17))
    with pytest.raises(ValueError, match="too few"):
        Windows(seed=1, n_tokens=16, block_size=16, batch=2)


def test_seeds_give_other_orders() -> None:
    one, two = (Windows(seed=s, n_tokens=5000, block_size=32, batch=24) for s in (1, 2))
    assert not np.array_equal(one.offsets(0, range(24)), two.offsets(0, range(24)))


def test_far_steps_are_as_cheap_as_near_ones() -> None:
    """No state is unrolled: a step beyond any run answers at once."""
    windows = Windows(seed=1, n_tokens=10**9, block_size=1024, batch=8)
    assert windows.offsets(10**9, range(8)).max() < 10**9
