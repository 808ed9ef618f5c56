"""The robust bands of statistics, on series whose departure is known."""

from __future__ import annotations

import math
import random

import pytest

from nanogpt_cli.training.causes import bands


def noisy(count: int, seed: int, slope: float = -0.01) -> list[tuple[int, float]]:
    rng = random.Random(seed)
    return [(s, 3.0 + slope * s + rng.gauss(0, 0.05)) for s in range(1, count + 1)]


def test_a_line_goes_through_its_points_whatever_the_outliers() -> None:
    points = [(s, 2.0 - 0.1 * s) for s in range(1, 21)]
    points[4] = (5, 99.0)
    points[12] = (13, -50.0)
    line = bands.fit(points)
    assert line.slope == pytest.approx(-0.1)
    assert line.value(30) == pytest.approx(-1.0)
    assert line.spread == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_departure(seed: int) -> None:
    assert bands.departure(noisy(300, seed), 300, floor=0.2) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_jump_is_found_at_its_step(seed: int) -> None:
    points = [(s, v + (1.5 if s >= 120 else 0.0)) for s, v in noisy(130, seed)]
    found = bands.departure(points, 130, floor=0.2)
    assert found is not None
    assert found.step == 120
    assert found.usual == pytest.approx(3.0 - 0.01 * 120, abs=0.15)
    assert found.sigmas > 6


def test_what_comes_back_before_the_event_is_none() -> None:
    points = [(s, v + (1.5 if 60 <= s < 64 else 0.0)) for s, v in noisy(130, 0)]
    assert bands.departure(points, 130, floor=0.2) is None
    assert bands.departure(points, 62, floor=0.2) is not None


def test_only_the_harmful_side_counts() -> None:
    points = [(s, v - (1.5 if s >= 120 else 0.0)) for s, v in noisy(130, 0)]
    assert bands.departure(points, 130, downward=False, floor=0.2) is None
    assert bands.departure(points, 130, upward=False, floor=0.2) is not None


def test_what_is_not_finite_is_outside_and_too_few_points_make_no_band() -> None:
    points = [*noisy(40, 1), (41, math.nan)]
    found = bands.departure(points, 41)
    assert found is not None
    assert found.step == 41
    assert bands.departure([(1, 1.0), (2, 99.0)], 2) is None


def test_a_fall_that_slows_down_is_no_departure() -> None:
    """A loss curve has a knee; what comes after it lies above the line of what came before."""
    rng = random.Random(4)
    curve = [(s, 2.3 + 2.0 * math.exp(-s / 12) + rng.gauss(0, 0.04)) for s in range(1, 141)]
    assert bands.departure(curve, 140, floor=0.2) is None
    jumped = [*curve[:110], (111, 4.0), *curve[111:]]
    found = bands.departure(jumped, 111, floor=0.2)
    assert found is not None
    assert found.step == 111
