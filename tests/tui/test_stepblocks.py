"""The fast parser of step blocks against ``events.decode``."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_cli.run import events
from nanogpt_cli.tui.state import stepblocks

numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, width=64),
    st.floats(0, 1e6, width=32).map(float),
    st.floats(1e-12, 1e-4),
    st.floats(1e14, 1e22),
    st.decimals(0, 1000, places=4).map(float),
    st.integers(-5, 10**9).map(float),
)
steps = st.builds(
    events.Step, time=numbers, step=st.integers(0, 10**9), loss=numbers, lr=numbers | st.none(),
    grad_norm=numbers | st.none(), tokens=st.integers(0, 10**15),
    tokens_per_s=numbers | st.none(), step_s=numbers,
    clipped=st.booleans(), skipped=st.booleans(),
)  # fmt: skip


def as_block(found: list[events.Step]) -> bytes:
    return "".join(events.encode(step) + "\n" for step in found).encode()


@given(st.lists(steps, min_size=1, max_size=12))
def test_agrees_with_decoding_line_by_line(found: list[events.Step]) -> None:
    block = as_block(found)
    fast = stepblocks.parse(block)
    decoded = [events.decode(line) for line in block.splitlines()]
    slow = stepblocks.from_events([e for e in decoded if isinstance(e, events.Step)])
    assert fast is not None
    for name, values in slow.items():
        np.testing.assert_allclose(fast[name], values, rtol=7e-16, atol=5e-324, err_msg=name)


GOOD = as_block([
    events.Step(step=s, loss=2.5, lr=1e-3, grad_norm=1.0, tokens=s * 64, tokens_per_s=10.0)
    for s in (1, 2, 3)
])  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"loss":2.5,', b""),
        (b'"loss":2.5', b'"loss":2.5,"new":1'),
        (b'"loss":2.5', b'"loss":null'),
        (b'"step_s":0.0', b'"step_s":null'),
        (b'"loss":2.5', b'"loss":[1,2]'),
        (b'"loss":2.5', b'"loss":"a:b"'),
        (b'"loss":2.5', b'"los":2.5'),
        (b'"loss":2.5', b'"loss":2.5.1'),
        (b'"loss":2.5', b'"loss":'),
        (b"}\n", b"}}\n"),
        (b"}\n", b"}garbage\n"),
        (b'{"type"', b' {"type"'),
    ],
)
def test_refuses_any_other_form(before: bytes, after: bytes) -> None:
    assert stepblocks.parse(GOOD) is not None
    head, _, tail = GOOD.partition(b"\n")
    middle, _, end = tail.partition(b"\n")
    changed = (middle + b"\n").replace(before, after, 1)
    assert changed != middle + b"\n"
    assert stepblocks.parse(head + b"\n" + changed + end) is None


def test_one_unusual_line_costs_only_itself() -> None:
    from nanogpt_cli.tui.state.view import RunView

    view = RunView()
    broken = GOOD.replace(b'"step":2,', b'"step":oops,', 1)
    view.fold_many([broken])
    assert view.steps["step"].tolist() == [1, 3]
    assert view.bad_lines == 1


def test_what_is_not_known_is_neither_a_number_nor_broken() -> None:
    from nanogpt_cli.tui.drawing import traces
    from nanogpt_cli.tui.state.view import RunView

    view = RunView()
    unknown = b'"grad_norm":null'
    lines = GOOD.replace(b'"grad_norm":1.0', unknown).replace(unknown, b'"grad_norm":4.0', 2)
    view.fold_many([lines.replace(b'"lr":0.001', b'"lr":null')])
    (trace,) = traces.metric_traces(view, "grad_norm", "step", level=0)
    assert trace.x.tolist() == [1, 2]
    assert trace.y.tolist() == [4, 4]
    assert traces.latest(view, "grad_norm") == "4.000"
    assert traces.metric_traces(view, "lr", "step", level=0) == []
    assert traces.latest(view, "lr") == "–"


def test_not_a_number_comes_through() -> None:
    block = GOOD.replace(b'"loss":2.5', b'"loss":"-Infinity"', 1)
    table = stepblocks.parse(block)
    assert table is not None
    assert table["loss"].tolist() == [-math.inf, 2.5, 2.5]
