"""Numbers by tag in the view: resumed runs, bounds, names that our own metrics have, odd values."""

from __future__ import annotations

import math

import pytest

from nanogpt_cli.run import events
from nanogpt_cli.tui.state import scalars
from nanogpt_cli.tui.state.history import METRICS
from nanogpt_cli.tui.state.view import RunView


def event(step: int, time: float = 0.0, **values: object) -> events.Scalars:
    return events.Scalars(step=step, time=time or 100.0 + step, values=values)


def test_repeated_steps_count_once_and_odd_values_not_at_all() -> None:
    view = RunView("x")
    for step in (1, 2, 3, 3, 2):
        view.fold(event(step, a=float(step)))
    view.fold(event(4, a="4", b=True, c=None, d=[1.0], e=7, f=math.nan))
    assert view.scalars.steps("a").tolist() == [1.0, 2.0, 3.0]
    assert view.scalars.tags() == ["a", "e", "f"]
    assert view.step == 4
    view.fold(events.RunStarted(name="x", step=2))
    assert view.scalars.values("a").tolist() == [1.0, 2.0]
    assert view.scalars.tags() == ["a"]
    view.fold(event(3, a=9.0))
    assert view.scalars.values("a").tolist() == [1.0, 2.0, 9.0]


def test_rows_and_tags_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scalars, "MOST_ROWS", 400)
    monkeypatch.setattr(scalars, "MOST_TAGS", 3)
    view = RunView("x")
    for step in range(5000):
        view.fold(event(step, a=float(step == 1234), **{f"t{step}": 1.0}))
    assert len(view.scalars.tags()) == 3
    assert len(view.scalars.values("a")) <= 400
    assert view.scalars.values("a").max() == 1.0, "extremes are kept"
    assert view.scalars.steps("a")[-1] == 4999


def test_axes() -> None:
    view = RunView("x")
    view.fold(event(10, time=50.0, a=1.0))
    view.fold(event(20, time=65.0, a=2.0))
    assert view.scalar_axis("a", "step").tolist() == [10.0, 20.0]
    assert view.scalar_axis("a", "time").tolist() == [0.0, 15.0]
    assert all(map(math.isnan, view.scalar_axis("a", "tokens"))), "nobody counted tokens"
    for step in (10, 30):
        view.fold(events.Step(step=step, loss=1.0, lr=None, grad_norm=None, tokens=step * 8,
                              tokens_per_s=None, time=float(step), step_s=1.0))  # fmt: skip
    assert view.scalar_axis("a", "tokens").tolist() == [80.0, 160.0]


def test_a_tag_with_the_name_of_a_metric_has_one_of_its_own() -> None:
    tags = {"loss", "b10", "b9"}
    assert scalars.names(tags, METRICS) == ["b9", "b10", "scalars/loss"]
    for name in scalars.names(tags, METRICS):
        assert scalars.tag_of(name, tags, METRICS) in tags
    assert scalars.tag_of("loss", tags, METRICS) == ""
    assert scalars.tag_of("nothing", tags, METRICS) == ""
