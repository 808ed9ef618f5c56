"""The draw: distribution, filters against transformers, and when rounding may matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_cli.core import filters
from nanogpt_cli.core.filters import next_token, settled_token, uniform
from nanogpt_cli.errors import UserError
from nanogpt_cli.sampling import Sampling

DRAWS = 20_000
COMBINATIONS = [
    Sampling(temperature=1.0, top_k=0),
    Sampling(temperature=0.7, top_k=10),
    Sampling(temperature=1.2, top_k=0, top_p=0.8),
    Sampling(temperature=1.0, top_k=0, min_p=0.1),
    Sampling(temperature=0.9, top_k=20, top_p=0.9),
    Sampling(temperature=1.5, top_k=25, top_p=0.95, min_p=0.05, repetition_penalty=1.4),
]
SEEN = (0, 3, 7)


def logits(seed: int, size: int = 40, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size, scale=scale).astype(np.float32)


def by_transformers(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities after the same filters in code of others, in its own order."""
    from transformers import generation as hf

    warpers: list[object] = [hf.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    warpers += [hf.TemperatureLogitsWarper(sampling.temperature)]
    warpers += [hf.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [hf.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    warpers += [hf.MinPLogitsWarper(sampling.min_p)] if sampling.min_p > 0 else []
    x = torch.from_numpy(scores.astype(np.float64))[None]
    for warp in warpers:
        x = warp(torch.tensor([list(SEEN)]), x)  # type: ignore[operator]
    return x.softmax(-1)[0].numpy()


@pytest.mark.parametrize("sampling", COMBINATIONS)
def test_draws_match_the_filtered_softmax(sampling: Sampling) -> None:
    """χ² of 20,000 draws against transformers' filters; 5 sigma of a χ² with that many cells."""
    scores = logits(1)
    expected = by_transformers(scores, sampling)
    drawn = np.zeros(scores.size)
    for position in range(DRAWS):
        u = uniform(7, 0, 0, position)
        drawn[next_token(scores, lambda u=u: u, sampling, seen=SEEN)] += 1
    assert drawn[expected == 0].sum() == 0
    cells = expected * DRAWS >= 5
    assert cells.sum() > 3
    rest = [np.append(x[cells], x[~cells].sum()) for x in (drawn, expected * DRAWS)]
    observed, wanted = (x[np.append(np.full(cells.sum(), True), rest[1][-1] > 0)] for x in rest)
    chi2 = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = wanted.size - 1
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("sampling", COMBINATIONS)
@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_is_what_transformers_keeps(sampling: Sampling, seed: int) -> None:
    scores = logits(seed, 200)
    kept = filters.keep(filters.adjusted(scores, sampling, seen=SEEN), sampling)
    expected = by_transformers(scores, sampling)
    assert kept.ids.tolist() == np.flatnonzero(expected).tolist()
    np.testing.assert_allclose(kept.probs, expected[expected > 0], rtol=1e-9)


def test_greedy_takes_the_best_without_asking_for_a_random_number() -> None:
    def never() -> float:
        raise AssertionError

    scores = logits(2)
    assert next_token(scores, never, Sampling(temperature=0)) == int(scores.argmax())


def test_equal_logits_rank_by_id() -> None:
    scores = np.zeros(9)
    drawn = {next_token(scores, lambda u=u: u, Sampling(top_k=3)) for u in (0.0, 0.5, 0.999)}
    assert drawn == {0, 1, 2}
    assert next_token(scores, lambda: 0.5, Sampling(temperature=0)) == 0


def test_numbers_are_uniform_and_keyed_by_place() -> None:
    numbers = np.array([uniform(s, 0, j, n) for s in (0, 1) for j in range(8) for n in range(500)])
    assert len(set(numbers)) == numbers.size
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 19 + 5 * np.sqrt(38)
    assert uniform(0, 0, 3, 5) == uniform(0, 0, 3, 5) != uniform(0, 1, 3, 5)
    # The stream is part of what a seed means: a change would change everybody's samples.
    assert uniform(1337, 0, 0, 0) == 0.39269033123133823


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    u=st.floats(0, 1, exclude_max=True),
    which=st.sampled_from([*COMBINATIONS, Sampling(temperature=0), Sampling(min_p=1.0)]),
    tolerance=st.sampled_from([1e-5, 1e-3, 1e-2]),
    coarse=st.booleans(),
)
def test_a_settled_draw_holds_under_every_error_within_tolerance(
    seed: int, u: float, which: Sampling, tolerance: float, coarse: bool
) -> None:
    scores = logits(seed, 30).astype(np.float64)
    if coarse:  # many exact ties
        scores = scores.round(0)
    adjusted = filters.adjusted(scores, which)
    token = settled_token(adjusted, u, which, tolerance)
    if token is None:
        return
    scale = which.temperature or 1.0
    rng = np.random.default_rng(seed)
    plain = Sampling(1.0, 1.0 if which.temperature else 0.0, which.top_k, which.top_p, which.min_p)
    for attempt in range(12):
        error = rng.choice([-1.0, 1.0], size=30) if attempt % 2 else rng.uniform(-1, 1, 30)
        moved = adjusted + error * tolerance / scale
        assert next_token(moved, lambda: u, plain) == token


def test_most_draws_are_settled() -> None:
    """A guard that never lets go would be correct and useless."""
    settled = [
        settled_token(filters.adjusted(logits(n), s), uniform(0, 0, 0, n), s, 1e-4) is not None
        for s in COMBINATIONS
        for n in range(300)
    ]
    assert np.mean(settled) > 0.98


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")),
        ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5), ("min_p", -0.1), ("min_p", 2.0),
        ("repetition_penalty", 0.0),
    ],
)  # fmt: skip
def test_nonsense_settings_are_named(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name.replace("_", "[- ]")):
        Sampling(**{name: value})  # type: ignore[arg-type]
