"""A draft changes how often the model runs, and never the text."""

from __future__ import annotations

import functools
from dataclasses import replace

import cached_models
import numpy as np
import pytest
import torch
from cached_models import MODERN, V

from nanogpt_cli.model.gpt import GPT, Multipliers
from nanogpt_cli.sampling import tuning
from nanogpt_cli.sampling.decode import Decoder
from nanogpt_cli.sampling.pace import LENGTHS, Pace
from nanogpt_cli.sampling.sampler import GenerationConfig, generate, reference_logits
from nanogpt_cli.sampling.settings import Sampling
from nanogpt_cli.sampling.weights import Draft, Weights

make = functools.partial(cached_models.make, n_layer=2, block_size=40)


def drafting(model: GPT, draft: GPT | None = None) -> Weights:
    """Weights with a draft in eight bits, of which passes of eight tokens would be fastest."""
    weights = Weights.of(model)
    weights.pack()
    pace = Pace(4.0, 1.0, {4: 8.0, 8: 9.0, 16: 50.0})
    weights.draft = Draft(Weights.of(draft or model).in_int8(), pace)
    return weights


def text(model: GPT, prompt: list[int], settings: GenerationConfig) -> list[int]:
    return [token.id for token in generate(model, [prompt], settings)]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens in each pass of the model that a draft went before."""
    found: list[int] = []
    plain = Decoder.extend

    def extend(self: Decoder, slot: int, tokens: list[int], length: int) -> torch.Tensor:
        found.append(len(tokens))
        return plain(self, slot, tokens, length)

    monkeypatch.setattr(Decoder, "extend", extend)
    return found


@pytest.mark.parametrize(
    "changes",
    [{}, MODERN, MODERN | {"multipliers": Multipliers(3.0, 0.5, 0.2, 0.25), "n_kv_head": 1}],
)
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(temperature=1.0, top_k=0),
        Sampling(temperature=0.9, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.3),
    ],
)
def test_a_text_is_that_of_the_naive_path(
    passes: list[int], changes: dict[str, object], sampling: Sampling
) -> None:
    """Also across the end of the context, where the window moves and is read anew."""
    model = make(**changes)
    weights = drafting(model)
    for context in ("slide", "roll"):
        settings = GenerationConfig(
            50,
            sampling=sampling,
            vocab_size=57,
            context=context,
            seed=3,  # type: ignore[arg-type]
        )
        naive = text(model, [1, 2], replace(settings, cached=False))
        assert text(model, [1, 2], replace(settings, weights=weights)) == naive
    assert len(passes) < sum(passes) / 2


def test_a_text_ends_where_it_would(passes: list[int]) -> None:
    model = make()
    weights = drafting(model)
    settings = GenerationConfig(30, sampling=Sampling(temperature=1.0), vocab_size=57)
    whole = text(model, [1], settings)
    for length in (1, 2, 3, 9, 10, 11):
        assert (
            text(model, [1], replace(settings, max_new_tokens=length, weights=weights))
            == (whole[:length])
        )
    stop = replace(settings, weights=weights, stop_ids=frozenset({whole[12]}))
    assert text(model, [1], stop) == whole[: whole.index(whole[12]) + 1]
    tokens = generate(model, [[1]], replace(settings, weights=weights, samples=3))
    texts: dict[int, list[int]] = {}
    for token in tokens:
        texts.setdefault(token.sample, []).append(token.id)
    assert texts[0] == whole


def test_a_draft_that_guesses_wrong_costs_time_alone_and_is_given_up(passes: list[int]) -> None:
    model = make(block_size=200)
    weights = drafting(model, make(seed=1, block_size=200))
    settings = GenerationConfig(150, sampling=Sampling(temperature=1.0, top_k=0))
    assert text(model, [1], replace(settings, weights=weights)) == text(model, [1], settings)
    assert 1 < len(passes) < 8
    assert passes == sorted(passes, reverse=True)  # shorter ones were tried before


@pytest.mark.parametrize("changes", [{}, MODERN])
def test_several_tokens_at_once_give_the_logits_of_the_model(changes: dict[str, object]) -> None:
    model = make(**changes)
    ids = torch.randint(0, V, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    for weights in (Weights.of(model), drafting(model)):
        decoder = Decoder(weights, 2)
        decoder.prefill([1], [ids[:5]])
        decoder.extend(1, [0] * 8, 5)  # what turned out wrong is written over
        rows = decoder.extend(1, ids[5:13], 5)
        last = decoder.step([1], [ids[13]], [13])
        for n in range(5, 13):
            expected = torch.from_numpy(reference_logits(model, ids[: n + 1]))
            torch.testing.assert_close(rows[n - 5], expected, rtol=1e-4, atol=1e-4)
        expected = torch.from_numpy(reference_logits(model, ids[:14]))
        torch.testing.assert_close(last[0], expected, rtol=1e-4, atol=1e-4)


def test_the_more_often_a_draft_is_right_the_further_ahead_it_proposes() -> None:
    pace = Pace(10.0, 1.0, {4: 10.0, 8: 12.0, 16: 21.5})
    always = [pace.length(n, n) for n in (0, 100, 1000)]
    seldom = [pace.length(n // 4, n) for n in (0, 10, 40, 400)]
    assert always == [8, 16, 16]
    assert seldom[0] == 8
    assert seldom == sorted(seldom, reverse=True)
    assert seldom[-1] == 1


def test_a_pass_takes_the_number_of_tokens_with_the_least_time_for_each_that_is_used() -> None:
    """Against the mean over simulated passes."""
    random = np.random.default_rng(0)
    asked, share = 10**6, 0.9
    for check in ({4: 10.0, 8: 12.0, 16: 16.0}, {4: 3.0, 8: 12.0}, {8: 30.0, 24: 31.0}):
        seconds = {}
        for n, took in check.items():
            wrong = random.random((20_000, n - 1)) > share
            used = 1 + np.where(wrong.any(1), wrong.argmax(1), n - 1)
            seconds[n] = (n - 1 + took) / used.mean()
        pace = Pace(100.0, 1.0, check)
        assert pace.length(int(share * asked), asked) == min(seconds, key=lambda n: seconds[n])


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 9])
def test_a_context_shorter_than_any_pass_is_tuned_as_well(block_size: int) -> None:
    model = make(block_size=block_size)
    weights = Weights.of(model)
    tuning.tune(weights, [1])
    settings = GenerationConfig(30, sampling=Sampling(temperature=1.0), weights=weights)
    assert text(model, [1], settings) == text(model, [1], replace(settings, cached=False))


@pytest.mark.parametrize("packed", [10, 50])
@pytest.mark.parametrize(("drafted", "checked", "pays"), [(1, 12, True), (50, 12, False)])
def test_a_draft_is_made_where_it_is_measured_to_pay(
    monkeypatch: pytest.MonkeyPatch, packed: float, drafted: float, checked: float, pays: bool
) -> None:
    """A plain step takes 40 here; whether packed ones are faster makes no difference."""

    def seconds(decoder: Decoder) -> float:
        weights = decoder.weights
        return float(drafted if weights.int8 else packed if weights.packed else 40)

    monkeypatch.setattr(tuning, "_step_seconds", seconds)
    monkeypatch.setattr(tuning, "_pass_seconds", lambda *_: float(checked + drafted))
    model = make()
    weights = Weights.of(model)
    found = tuning.tune(weights, [1])
    assert (found.packed, found.drafts, weights.draft is not None) == (packed < 40, pays, pays)
    if weights.draft is not None:
        checks = {n: float(checked) for n in LENGTHS}
        assert weights.draft.pace == Pace(min(packed, 40), drafted, checks)
        assert len(weights.draft.weights.layers) == len(weights.layers)
    settings = GenerationConfig(20, weights=weights)
    assert text(model, [1], settings) == text(model, [1], replace(settings, cached=False))
