"""The vocabulary: every event survives the round trip, NaN and infinity too."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_cli.run import events

text = st.text(max_size=20)
numbers = st.floats(allow_nan=False)
tables = st.dictionaries(text, st.lists(st.floats(allow_nan=False), max_size=4), max_size=3)
BY_ANNOTATION: dict[str, st.SearchStrategy[Any]] = {
    "str": text.filter(lambda t: t not in ("NaN", "Infinity", "-Infinity")),
    "int": st.integers(0, 2**60),
    "float": numbers,
    "bool": st.booleans(),
    "float | None": st.none() | numbers,
    "int | None": st.none() | st.integers(0, 100),
    "Mapping[str, Any]": tables,
    "tuple[str, ...]": st.lists(text, max_size=3).map(tuple),
}


def event_of(cls: type[events.Event]) -> st.SearchStrategy[events.Event]:
    return st.builds(cls, **{item.name: BY_ANNOTATION[str(item.type)] for item in fields(cls)})


@pytest.mark.parametrize("kind", sorted(events.EVENTS))
def test_round_trip(kind: str) -> None:
    @settings(deadline=None, max_examples=50)
    @given(event_of(events.EVENTS[kind]))
    def check(event: events.Event) -> None:
        line = events.encode(event)
        assert "\n" not in line
        assert json.loads(line)["type"] == kind
        assert events.decode(line) == event
        assert events.decode(line.encode()) == event

    check()


def test_non_finite_numbers_stay_strict_json_and_come_back() -> None:
    event = events.Layers(
        step=1, stats={"a": [math.inf, -math.inf, 1.0]}, cost=math.inf,
        histograms={"w": {"edges": [0.0, math.inf], "counts": [[1.0]]}},
    )  # fmt: skip
    line = events.encode(event)
    json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not strict JSON"))
    assert events.decode(line) == event
    step = events.decode(events.encode(events.Eval(step=1, val_loss=math.nan)))
    assert isinstance(step, events.Eval)
    assert math.isnan(step.val_loss)


def test_a_text_that_says_nan_stays_a_text() -> None:
    sample = events.Sample(step=1, prompt="NaN", text="Infinity")
    assert events.decode(events.encode(sample)) == sample


def test_unknown_types_and_fields_are_skipped() -> None:
    assert events.decode('{"type":"later","x":1}') is None
    event = events.decode('{"type":"note","message":"m","colour":"red","time":1.5}')
    assert event == events.Note(message="m", time=1.5)


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "7", "null", "{}", '{"type":7}', '{"type":"step","step":1}', "\x00"]
)
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        events.decode(line)
