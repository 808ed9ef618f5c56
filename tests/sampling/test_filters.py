"""The draw: distribution, filters against transformers, and when rounding may matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_cli.errors import UserError
from nanogpt_cli.sampling import filters
from nanogpt_cli.sampling.filters import draw_key, gumbel, next_token, settled_token
from nanogpt_cli.sampling.settings import Sampling

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
        drawn[next_token(scores, draw_key(7, 0, 0, position), sampling, seen=SEEN)] += 1
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
    kept = filters.kept(filters.adjusted(scores, sampling, seen=SEEN), sampling)
    assert kept.tolist() == np.flatnonzero(by_transformers(scores, sampling)).tolist()


def test_greedy_takes_the_best_whatever_the_key() -> None:
    scores = logits(2)
    drawn = {next_token(scores, key, Sampling(temperature=0)) for key in range(50)}
    assert drawn == {int(scores.argmax())}
    assert next_token(np.zeros(9), 5, Sampling(temperature=0)) == 0


def test_equal_scores_at_the_edge_of_a_filter_stay_together() -> None:
    """As in nanoGPT's and transformers' top-k: the order of ids decides nothing."""
    scores = np.array([3.0, 1.0, 2.0, 2.0, 2.0, 0.0])
    for which in (Sampling(top_k=2), Sampling(1.0, 1.0, 0, 0.6), Sampling(1.0, 1.0, 0, 1.0, 0.36)):
        assert filters.kept(scores, which).tolist() == [0, 2, 3, 4]


def test_noise_is_gumbel_and_keyed_by_place_and_token() -> None:
    keys = [draw_key(s, p, j, n) for s in (0, 1) for p in (0, 1) for j in (0, 3) for n in range(50)]
    assert len(set(keys)) == len(keys)
    noise = np.array([gumbel(key, np.arange(200)) for key in keys])
    assert np.unique(noise).size == noise.size
    uniform = np.exp(-np.exp(-noise))  # a Gumbel number's own distribution function
    counts = np.histogram(uniform, bins=20, range=(0, 1))[0]
    expected = noise.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 19 + 5 * np.sqrt(38)
    for axis in (0, 1):  # neighbouring tokens and neighbouring draws know nothing of each other
        ahead, behind = (np.take(uniform, range(*r), axis) for r in ((1, 200), (0, 199)))
        assert abs(np.corrcoef(ahead.ravel(), behind.ravel())[0, 1]) < 5 / np.sqrt(ahead.size)


def test_noise_of_a_token_does_not_depend_on_the_others() -> None:
    ids = np.array([50_000, 3, 7])
    assert gumbel(9, ids).tolist() == gumbel(9, np.arange(50_257))[ids].tolist()


def test_what_a_seed_means_stays() -> None:
    """A change of the stream would change everybody's samples."""
    key = draw_key(1337, 0, 0, 0)
    assert key == 7243858040444730119
    expected = [-1.2048534538209597, 0.18354948121895065, -1.0834768583264078]
    assert gumbel(key, np.array([0, 1, 50_256])).tolist() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    key=st.integers(0, 2**64 - 1),
    which=st.sampled_from([*COMBINATIONS, Sampling(temperature=0), Sampling(min_p=1.0)]),
    tolerance=st.sampled_from([1e-5, 1e-3, 1e-2]),
    coarse=st.booleans(),
)
def test_a_settled_draw_holds_under_every_error_within_tolerance(
    seed: int, key: int, which: Sampling, tolerance: float, coarse: bool
) -> None:
    scores = logits(seed, 30).astype(np.float64)
    if coarse:  # many exact ties
        scores = scores.round(0)
    adjusted = filters.adjusted(scores, which)
    token = settled_token(adjusted, key, which, tolerance)
    if token is None:
        return
    scale = which.temperature or 1.0
    rng = np.random.default_rng(seed)
    plain = Sampling(1.0, 1.0 if which.temperature else 0.0, which.top_k, which.top_p, which.min_p)
    for attempt in range(12):
        error = rng.choice([-1.0, 1.0], size=30) if attempt % 2 else rng.uniform(-1, 1, 30)
        moved = adjusted + error * tolerance / scale
        assert next_token(moved, key, plain) == token


@pytest.mark.parametrize("sampling", COMBINATIONS)
def test_draws_are_settled_but_for_ties_of_the_best_two(sampling: Sampling) -> None:
    """A guard that never lets go would be correct and useless."""
    flat = [filters.adjusted(logits(n, 5_000, scale=0.3), sampling) for n in range(3)]
    settled = [settled_token(flat[n % 3], n, sampling, 1e-5) is not None for n in range(600)]
    assert np.mean(settled) > 0.99


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_is_refused(value: float) -> None:
    """A checkpoint can hold weights that diverged."""
    spoilt = logits(1)
    spoilt[3] = value
    for temperature in (0.0, 1.0):
        with pytest.raises(UserError, match="logits are not finite"):
            next_token(spoilt, 1, Sampling(temperature=temperature))


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
