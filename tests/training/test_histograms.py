"""Histograms against those of NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nanogpt_cli.training.histograms import BINS, _tally, _tally_without_waiting, histograms

_SPECIAL = torch.tensor([math.nan, math.inf, -math.inf])


def values(n: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(n)) * scale + shift


def below(rows: list[Tensor], edges: np.ndarray) -> np.ndarray:
    """How many finite values each row has below each of some edges, by NumPy; (rows, edges)."""
    ends = np.array([-np.inf, *edges, np.inf])
    found = []
    for row in rows:
        x = row.double().numpy()
        counts, _ = np.histogram(x[np.isfinite(x)], ends)
        found.append(counts.cumsum()[:-1])
    return np.array(found)


@pytest.mark.numeric
@pytest.mark.parametrize(
    "rows",
    [
        [values(70_000), values(500, 0.1)],
        [torch.cat([values(900), _SPECIAL]), _SPECIAL],
        [values(1000, 1e-6, shift=3.0), values(1000, 1e-6, shift=3.0)],  # 2^-22 apart
        [torch.tensor([-3.4e38, 0.0, 1e38, 3.4e38])],  # wider than float32 reaches
        [values(1000).bfloat16()],
    ],
    ids=["two rows", "not finite", "narrow", "wide", "bf16"],
)
def test_counts_are_those_of_numpy_but_for_values_within_rounding_of_an_edge(
    rows: list[Tensor],
) -> None:
    found = histograms({"it": [[row] for row in rows]})["it"]
    counts = np.array(found["counts"])
    finite = [row[row.isfinite()].double() for row in rows]
    assert counts.sum(1).tolist() == [len(row) for row in finite]
    low, high = (float(f(torch.cat(finite))) for f in (torch.min, torch.max))
    edges = np.linspace(low, high, BINS + 1)
    np.testing.assert_allclose(found["edges"], edges, rtol=1e-5, atol=(high - low) * 1e-5)
    # 2^-21 of the width is left free above the largest value; five operations round by half an ulp
    # each, and the difference is rounded as the larger of its terms.
    off = (high - low) * 2**-20 + max(abs(low), abs(high)) * 2**-24 + 2**-148
    sums = counts.cumsum(1)[:, :-1]
    assert (below(rows, edges[1:-1] - off) <= sums).all()
    assert (sums <= below(rows, edges[1:-1] + off)).all()


def test_a_row_of_several_tensors_is_counted_as_one() -> None:
    x = values(300).view(20, 15)
    assert histograms({"it": [[x[:9], x[9:].mT]]}) == histograms({"it": [[x]]})


@pytest.mark.parametrize("row", [[7.0, 7.0], [-1e30], [0.0], [0.0, 1e-44, 3e-40]])
def test_values_that_hardly_differ_share_the_first_bin(row: list[float]) -> None:
    found = histograms({"it": [[torch.tensor(row)]]})["it"]
    assert found["counts"] == [[len(row)] + [0] * (BINS - 1)]
    assert found["edges"][0] == row[0] < found["edges"][-1]


def test_a_group_without_finite_values_is_left_out() -> None:
    assert list(histograms({"none": [[_SPECIAL]], "some": [[values(9)]]})) == ["some"]
    assert histograms({}) == {}


def test_gpus_count_as_processors_do() -> None:
    numbers = torch.randint(BINS + 1, (999,), generator=torch.Generator().manual_seed(0)).byte()
    assert torch.equal(_tally(numbers), _tally_without_waiting(numbers))
