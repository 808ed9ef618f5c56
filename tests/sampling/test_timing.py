"""Benchmarks count what they time: every way gets the same work."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.sampling import decode, timing, tuning
from nanogpt_cli.sampling.sampler import GenerationConfig
from nanogpt_cli.sampling.weights import Weights


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(2, 2, 16, 32, 40, 0.0, True, "gelu")).eval()


def test_ways_take_turns_at_the_same_work(model: GPT) -> None:
    asked: list[tuple[int, int]] = []

    def rival(prompt: Sequence[int], new: int) -> None:
        asked.append((len(prompt), new))

    found = timing.time_sampling(
        model, [1, 2, 3], GenerationConfig(20, samples=2), repeats=3, rivals={"x": rival}
    )
    assert asked == [(3, 20)] * 3
    assert found.naive_lengths[0] == 3
    assert found.naive_lengths[-1] == 22
    assert found.cache_bytes == 2 * 2 * 2 * 32 * 16 * 4  # layers, rows, key and value, T, C, float
    assert found.packed_bytes == 0
    assert found.weight_bytes == 4 * sum(p.numel() for p in model.parameters())


def test_a_rival_is_timed_with_the_threads_it_is_fastest_with(model: GPT) -> None:
    asked: list[int] = []

    def rival(prompt: Sequence[int], new: int) -> None:
        asked.append(torch.get_num_threads())
        if torch.get_num_threads() == 1:
            for _ in range(2000):
                torch.randn(100)

    before = torch.get_num_threads()
    found = timing.time_sampling(
        model, [1], GenerationConfig(2), repeats=3, rivals={"x": rival}, rival_threads=[1, 2]
    )
    assert asked == [1, 2, 2, 2]
    assert found.rival_threads == {"x": 2}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("new", [1, 2, 5])
def test_short_texts_are_timed_too(model: GPT, new: int) -> None:
    found = timing.time_sampling(model, [1], GenerationConfig(new), repeats=1)
    assert found.naive_lengths == tuple(range(1, new + 1))
    assert found.cached.tokens_per_s > 0
    assert found.naive.first_s > 0


def test_a_rate_is_made_of_the_gaps_between_positions() -> None:
    rate = timing._rate(iter([0.5, 0.0, 0.0, 0.6, 0.4]), samples=4)
    assert rate.first_s == 0.5
    assert rate.token_s == pytest.approx(0.25)
    assert rate.slow_s == 0.6
    assert rate.tokens_per_s == pytest.approx(4 * 5 / 1.5)
    alone = timing._rate(iter([0.5]), samples=1)
    assert alone.tokens_per_s == pytest.approx(2)


def test_tuning_tries_every_way_takes_the_fastest_and_restores_the_threads(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    for fastest in ((1, True), (2, False), (2, True)):

        def seconds(decoder: decode.Decoder, fastest: tuple[int, bool] = fastest) -> float:
            way = (torch.get_num_threads(), decoder.weights.packed)
            return 0.5 if way == fastest else 1.0

        monkeypatch.setattr(tuning, "_step_seconds", seconds)
        weights = Weights.of(model)
        found = tuning.tune(weights, tuning.thread_counts(2))
        assert set(found.seconds) == {(1, False), (1, True), (2, False), (2, True)}
        assert (found.threads, found.packed) == fastest
        assert weights.packed == found.packed
    assert torch.get_num_threads() == before
    assert tuning.thread_counts(1) == [1]
    assert tuning.thread_counts(6) == [1, 2, 4]


def test_tuning_measures_steps_of_a_model_that_cannot_be_packed(model: GPT) -> None:
    weights = Weights.of(model, torch.bfloat16)
    found = tuning.tune(weights, [1])
    assert list(found.seconds) == [(1, False)]
    assert 0 < found.seconds[1, False] < float("inf")
    assert not weights.packed
