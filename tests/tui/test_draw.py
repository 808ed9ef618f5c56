"""The pure drawing: nothing is lost, nothing is out of bounds, NaN harms nobody."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nanogpt_cli import ticks, units
from nanogpt_cli.tui.drawing import draw, heat
from nanogpt_cli.tui.drawing.draw import Scale
from nanogpt_cli.tui.drawing.plot import PlotOptions, Trace, plot
from nanogpt_cli.tui.state.series import Columns, Smoothed, thin

values = st.floats(-1e6, 1e6, width=32) | st.sampled_from([np.nan, np.inf, -np.inf])
series = arrays(np.float32, st.integers(1, 300), elements=values)


@given(series, st.integers(1, 80), st.floats(0, 1), st.floats(0.01, 1), st.booleans())
def test_envelope_holds_every_buckets_extremes(
    y: np.ndarray, buckets: int, start: float, share: float, log: bool
) -> None:
    """For any zoom: each point lies in one bucket, whose span is exactly from min to max."""
    x = np.arange(1, len(y) + 1, dtype=float)
    low = 1 + start * (len(y) - 1)
    scale = Scale(low, low + max(share * len(y), 0.5), log)
    band = draw.envelope(x, y, scale, buckets)
    edges = scale.edges(buckets)
    for k in range(buckets):
        last = k == buckets - 1
        inside = (x >= edges[k]) & ((x <= scale.high) if last else (x < edges[k + 1]))
        mine = y[inside]
        finite = mine[np.isfinite(mine)]
        if len(finite):
            assert band.low[k] == finite.min()
            assert band.high[k] == finite.max()
        else:
            assert np.isnan(band.low[k])
        assert band.broken[k] == (len(finite) < len(mine))


@given(series, st.integers(1, 60), st.integers(1, 60))
def test_raster_draws_the_whole_span(y: np.ndarray, buckets: int, rows: int) -> None:
    x = np.arange(len(y), dtype=float)
    band = draw.envelope(x, y, Scale(0, max(1, len(y) - 1)), buckets)
    finite = y[np.isfinite(y)]
    scale = Scale(
        *ticks.padded_bounds([(finite.min(), finite.max())] if len(finite) else [], False)
    )
    dots = draw.raster(band, scale, rows)
    assert dots.shape == (rows, buckets)
    top, bottom = draw.dots_of(band.high, scale, rows), draw.dots_of(band.low, scale, rows)
    for k in np.flatnonzero(band.filled):
        assert dots[top[k] : bottom[k] + 1, k].all()


def test_one_spike_in_a_million_points_is_drawn_at_any_zoom() -> None:
    y = np.full(1_000_000, 2.0, np.float32)
    y[654_321] = 9.0
    x = np.arange(len(y), dtype=float)
    for low, high in ((0, 1e6), (6e5, 7e5), (654_000, 655_000), (654_321, 654_322)):
        picture = plot([Trace("loss", x, y, "train")], (low, high), 100, 20)
        assert picture.y.high >= 9.0
        assert picture.rows[1][0][0].strip() or any(t.strip() for t, _ in picture.rows[0])
        upper = "".join(text for row in picture.rows[:3] for text, key in row if key == "train")
        assert upper.strip(), (low, high)


@pytest.mark.parametrize("log", [False, True])
def test_non_finite_values_are_marked_and_never_in_the_axis(log: bool) -> None:
    x = np.arange(1.0, 101)
    y = np.linspace(5, 1, 100)
    y[20], y[50], y[70:80] = np.nan, np.inf, -np.inf
    picture = plot([Trace("loss", x, y, "train")], (1, 100), 60, 12, PlotOptions(log_y=log))
    assert np.isfinite([picture.y.low, picture.y.high]).all()
    assert picture.y.high < 6
    top = "".join(text for text, key in picture.rows[0] if key == "error")
    assert "×" in top


@pytest.mark.parametrize("y", [[], [np.nan] * 5, [1.0], [3.0] * 5, [0.0, -1.0], [1e-300, 1e300]])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 2), (20, 4), (80, 20)])
def test_odd_data_is_drawn_within_its_size(
    y: list[float], log: bool, size: tuple[int, int]
) -> None:
    x = np.arange(len(y), dtype=float)
    for ascii_only in (False, True):
        options = PlotOptions(log_x=log, log_y=log, ascii_only=ascii_only, cursor=1.0)
        picture = plot([Trace("t", x, np.array(y), "train")], (0, 10), *size, options)
        assert len(picture.rows) <= size[1]
        for row in picture.rows:
            text = "".join(piece for piece, _ in row)
            assert len(text) == size[0]
            if ascii_only:
                assert text.isascii()


def test_gaps_break_the_line_and_sparse_points_are_joined() -> None:
    x = np.arange(100.0)
    y = np.ones(100)
    y[40:60] = np.nan
    scale = Scale(0, 99)
    dots = draw.raster(draw.envelope(x, y, scale, 50), Scale(0, 2), 9)
    assert not dots[:, 22:28].any()
    sparse = draw.raster(draw.envelope(x[::25], np.ones(4), scale, 50), Scale(0, 2), 9)
    assert sparse[:, :38].any(0).all()


def test_braille_dots_are_where_unicode_says() -> None:
    dots = np.zeros((4, 4), bool)
    dots[0, 0] = dots[3, 1] = True
    assert [chr(c) for c in draw.braille(dots)[0] if c] == ["⢁"]
    assert draw.braille(dots)[0, 1] == 0
    assert chr(draw.braille(np.ones((4, 2), bool))[0, 0]) == "⣿"


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(1, 12))
def test_linear_ticks_are_round_few_and_inside(low: float, span: float, most: int) -> None:
    span = max(span, abs(low) * 1e-6)
    high = low + span
    at = ticks.linear(low, high, most)
    assert len(at) <= most
    assert all(low - span * 1e-6 <= v <= high + span * 1e-6 for v in at)
    gaps = np.diff(at)
    assert np.allclose(gaps, gaps[0] if len(gaps) else 0, rtol=1e-4)


def test_log_ticks_are_decades_and_their_friends() -> None:
    assert ticks.log10(1, 1000, 4) == [1, 10, 100, 1000]
    assert ticks.log10(1, 100, 8) == [1, 2, 5, 10, 20, 50, 100]
    assert ticks.labels(ticks.linear(0, 40_000, 5)) == ["0", "10k", "20k", "30k", "40k"]
    assert ticks.labels([2.0, 2.5, 3.0]) == ["2.0", "2.5", "3.0"]
    assert ticks.labels(ticks.clock(0, 200, 4), "time") == ["0s", "1m", "2m", "3m"]


@given(arrays(np.float64, st.integers(0, 400), elements=values), st.sampled_from([0.0, 0.6, 0.98]),
       st.lists(st.integers(0, 400), max_size=4))  # fmt: skip
def test_smoothing_is_the_closed_form_however_it_arrives(
    x: np.ndarray, beta: float, cuts: list[int]
) -> None:
    column = np.where(np.isfinite(x), x, np.nan)
    numerator = denominator = 0.0
    expected = []
    for value in column:
        seen = np.isfinite(value)
        numerator = beta * numerator + (1 - beta) * (value if seen else 0.0)
        denominator = beta * denominator + (1 - beta) * seen
        expected.append(numerator / denominator if denominator else np.nan)
    smooth = Smoothed(beta)
    for cut in sorted(c for c in cuts if c <= len(x)):
        smooth.update(column[:cut])
    got = smooth.update(column)
    if beta == 0.0:  # after a gap nothing is left of the past
        keep = np.isfinite(column)
        got, expected = got[keep], np.array(expected)[keep].tolist()
    np.testing.assert_allclose(got, np.array(expected), rtol=1e-5, atol=1e-1)


@settings(max_examples=30)
@given(arrays(np.float32, st.integers(32, 400), elements=values))
@example(np.array([1.0] * 40 + [0.0] + [1.0] * 7, np.float32))  # whole groups: no rest at the end
def test_thinning_keeps_every_extreme(y: np.ndarray) -> None:
    columns = Columns(loss="f4")
    columns.extend({"loss": y})
    kept = y[thin(columns, ("loss",))]
    finite = y[np.isfinite(y)]
    if len(finite):
        left = kept[np.isfinite(kept)]
        assert (left.min(), left.max()) == (finite.min(), finite.max())
    assert (~np.isfinite(kept)).sum() == (~np.isfinite(y)).sum()
    assert kept[-1] == y[-1] or np.isnan(y[-1])


def test_heat_map_buckets_keep_the_largest_and_mark_what_is_broken() -> None:
    steps = np.arange(0, 1000, 10.0)
    grid = np.ones((100, 3))
    grid[57, 1], grid[80, 2] = 50.0, np.nan
    stat = heat.statistic("grad_norm")
    found, broken = heat.buckets(stat, steps, grid, Scale(0, 990), 20, heat.typical(grid))
    assert np.nanmax(found[1]) == 50.0
    assert broken[2].sum() == 1
    assert not broken[:2].any()


@pytest.mark.parametrize("layers", [1, 3, 12, 48, 96])
@pytest.mark.parametrize("height", [1, 6, 20])
@pytest.mark.parametrize("ramp", [False, True])
def test_heat_map_fits_and_names_what_it_pools(layers: int, height: int, ramp: bool) -> None:
    rng = np.random.default_rng(0)
    picture = heat.heat_map(
        heat.statistic("resid_rms"), np.arange(1, 51.0), rng.random((50, layers)) + 0.1, (0, 50),
        60, height, ramp=ramp,
    )  # fmt: skip
    assert len(picture.rows) <= height
    assert picture.pooled * height * (1 if ramp else 2) >= layers
    for row in picture.rows:
        assert sum(len(text) for text, _ in row) == 60
        if ramp:
            assert not any("on #" in key for _, key in row)


@pytest.mark.parametrize("height", [3, 5, 10, 16, 24, 48])
@pytest.mark.parametrize("ramp", [False, True])
def test_a_rows_number_belongs_to_a_layer_of_its_label(height: int, ramp: bool) -> None:
    """At every height: rows name all layers once, in order, and the extremes are never lost."""
    depth = 0.076 * 1.05 ** np.arange(48)
    depth[20] = 4.5  # an odd one in the middle
    picture = heat.heat_map(
        heat.statistic("resid_rms"), np.array([1.0, 2.0]), np.stack([depth, depth]), (0, 2), 60,
        height, ramp=ramp,
    )  # fmt: skip
    covered, shown = [], []
    for row in picture.rows:
        label = row[0][0].strip().removeprefix("h.")
        if not label:  # a thick row goes on
            continue
        first, _, last = label.partition("–")
        mine = range(int(first), int(last or first) + 1)
        covered += mine
        text = row[-1][0].strip(" !")
        shown.append(text)
        assert text in {units.number(float(depth[k])) for k in mine}
    assert covered == list(range(48))
    assert {units.number(0.076), units.number(4.5)} <= set(shown)


def test_the_colour_bar_says_what_lies_beyond_its_ends() -> None:
    values = np.ones((100, 4)) * [1.0, 1.1, 1.2, 1.3]
    values[50, 1] = 90.0
    stat = heat.statistic("grad_norm")
    picture = heat.heat_map(stat, np.arange(100.0), values, (0, 99), 120, 4)
    assert heat.color_bar(picture, characters=False).endswith("1.30 < 90.0")
    calm = heat.heat_map(stat, np.arange(99.0), np.ones((99, 4)), (0, 98), 120, 4)
    assert "<" not in heat.color_bar(calm, characters=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (999.9, "1k"), (1234567, "1.23M"), (1e9, "1G"), (0.001, "0.001"),
     (-1500, "-1.5k")],
)  # fmt: skip
def test_si(value: float, text: str) -> None:
    assert units.si(value) == text


def test_units() -> None:
    assert units.duration(764) == "12:44"
    assert units.duration(93_784) == "1 d 2 h"
    assert units.percent(0.006) == "0.6%"
    assert units.number(float("nan")) == "NaN"
    assert units.number(3.1e-4) == "3.10e-4"
    assert sorted(["h.10", "h.2", "h.1"], key=units.natural) == ["h.1", "h.2", "h.10"]


@given(
    st.lists(st.integers(1, 900), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([0, 3, 400]), st.booleans(),
)  # fmt: skip
def test_extremes_of_blocks_change_no_envelope(
    pieces: list[int], seed: int, buckets: int, odd: int, truncated: bool
) -> None:
    rng, columns = np.random.default_rng(seed), Columns(x="f8", y="f4")
    for size in pieces:
        y = rng.standard_normal(size)
        y[rng.integers(0, size, odd)] = rng.choice([np.nan, np.inf, -np.inf])
        columns.extend({"x": len(columns) + np.arange(size, dtype=float), "y": y})
        columns.extremes("y")
        if truncated:
            columns.truncate(len(columns) - size // 2)
    x, y, end = columns["x"], columns["y"], float(len(columns))
    scale = draw.Scale(*sorted((float(rng.uniform(-1, end)), end * 1.1)))
    whole = draw.envelope(x, y, scale, buckets)
    quick = draw.envelope(x, y, scale, buckets, columns.extremes("y"))
    for name in ("low", "high", "first", "last", "broken"):
        np.testing.assert_array_equal(getattr(quick, name), getattr(whole, name), err_msg=name)
    filled = whole.low[whole.filled], whole.high[whole.filled]
    span = (float(filled[0].min()), float(filled[1].max())) if len(filled[0]) else None
    assert draw.reach(x, y, scale) == draw.reach(x, y, scale, columns.extremes("y")) == span
