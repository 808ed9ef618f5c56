"""The query language of run lists."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_cli.errors import UserError
from nanogpt_cli.run import query

RUN: dict[str, Any] = {
    "name": "small-muon", "state": ("evaluate", "running", "live"), "tag": ("baseline", "v2"),
    "note": "warm start, try", "step": 500, "loss": 2.5, "best": None, "speed": 12e3, "alarms": 1,
    "age": 7200.0, "parameters": 10_795_776, "optim.lr": 1e-3, "model.init": "gpt2",
    "optim.muon": True, "train.max_steps": 10_000, "model.tie": False, "run.name": "small-muon",
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "small", "MUON", "s*muon", "small-???n", "-large", "!large", "small muon",
        "state:running", "state:live,finished", "-state:finished", "tag:baseline", "tag:base*",
        "-tag:base", "note:warm", 'note:"warm start"', "-note:cold", "lr>=1e-3", "lr<=1e-3",
        "optim.lr=0.001", "lr!=3e-4", "-lr>1e-3", "model.init=gpt2", "init:gpt", "init=gpt2,mup",
        "max_steps=10k", "parameters>10M", "age>1h", "age<3h", "age=7200s", "muon=true",
        "tie:false", "best=none", "-best<9", "speed>10k", "alarms>=1", "name:small", "lr<inf",
    ],
)  # fmt: skip
def test_what_holds_and_its_opposite(text: str) -> None:
    assert query.parse(text).holds(RUN)
    if text and " " not in text.replace('"warm start"', ""):
        opposite = text[1:] if text[0] in "-!" else f"-{text}"
        assert not query.parse(opposite).holds(RUN)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr>=abc", "'lr>=abc' in the filter needs a number"),
        ("age>2x", "such as 12m, 3h or 2d"),
        ("state:", "'state:' in the filter has no value"),
        ("tag:a,,b", "has no value"),
        ('note:"open', "a quote without its end"),
        ("-", "nothing to look for"),
        ('""', "nothing to look for"),
        ("x" * 1001, "more than 1,000 characters"),
    ],
)
def test_what_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        query.parse(text)
    whole = f"{refused.value.message} {refused.value.hint}"
    assert said in whole
    assert "\n" not in whole


def test_a_field_that_no_run_has_is_named_with_the_nearest() -> None:
    asked = query.parse("small optm.lr>1")
    with pytest.raises(UserError, match=r"'optm\.lr'") as refused:
        asked.check_fields(query.flat({"optim": {"lr": 1}}))
    assert refused.value.hint == "did you mean optim.lr?"
    query.parse("lr>1 optim.lr>1 state:x").check_fields(["optim.lr"])


words = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@given(st.text(max_size=60))
def test_any_text_is_a_query_or_refused(text: str) -> None:
    with contextlib.suppress(UserError):
        query.parse(text).holds(RUN)


@given(st.lists(st.sampled_from(["state:running", "lr>1", "-tag:v2", "small", "best<2"])))
def test_all_terms_must_hold(terms: list[str]) -> None:
    together = query.parse(" ".join(terms)).holds(RUN)
    assert together == all(query.parse(term).holds(RUN) for term in terms)


@given(st.floats(allow_nan=True), st.floats(allow_nan=False, width=32))
def test_numbers_compare_as_numbers(value: float, limit: float) -> None:
    values = {"loss": value}

    def holds(sign: str) -> bool:
        return query.parse(f"loss{sign}{limit!r}").holds(values)

    assert holds("<") == (value < limit)
    assert holds(">=") == (value >= limit)
    assert holds("=") == (value == limit)
    assert holds("!=") == (value != limit)
    assert not (math.isnan(value) and (holds("<") or holds(">=")))


@given(words, words)
def test_a_name_in_quotes_is_found_in_itself(first: str, second: str) -> None:
    name = f"{first} {second}".replace('"', "")
    if name.strip() and not set("*?[") & set(name):
        assert query.parse(f'"{name}"').holds({"name": name})


@given(st.dictionaries(words, st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
), max_size=4))  # fmt: skip
def test_values_of_any_type_in_a_recipe_do_no_harm(recipe: dict[str, Any]) -> None:
    values = query.flat(recipe)
    for text in ("a=1", "a>1", "a:b", "-a:b*", "lr!=x"):
        query.parse(text).holds({**dict.fromkeys(["a", "x.lr"], values), **values})
