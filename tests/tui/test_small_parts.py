"""Parts of the dashboard that need no screen: filters, states, histories, header, tables."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color

from nanogpt_cli import units
from nanogpt_cli.run import events
from nanogpt_cli.tui import dialogs, header, keys, words
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.drawing import heat
from nanogpt_cli.tui.harmless import Harmless
from nanogpt_cli.tui.pages.compare import ComparePage
from nanogpt_cli.tui.pages.layers import LayersPage
from nanogpt_cli.tui.pages.logs import LogsPage
from nanogpt_cli.tui.pages.overview import OverviewPage
from nanogpt_cli.tui.pages.page import Page
from nanogpt_cli.tui.pages.runs import RunsPage
from nanogpt_cli.tui.pages.samples import SamplesPage
from nanogpt_cli.tui.pages.system import SystemPage
from nanogpt_cli.tui.state import liveness, patterns
from nanogpt_cli.tui.state.history import StatisticHistory, Steps
from nanogpt_cli.tui.state.session import RunSession
from nanogpt_cli.tui.state.view import RunView
from nanogpt_cli.tui.state.workspace import Workspace
from nanogpt_cli.tui.widgets import panes

texts = st.text(st.characters(exclude_categories=["C"]), max_size=30)


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [("", 3), ("grad", 2), ("h.1 grad", 1), ("!grad", 1), ("H.*norm", 2), ("/^h\\.1/", 1),
     ("/[/", 0)],
)  # fmt: skip
def test_patterns(pattern: str, matching: int) -> None:
    names = ["h.0.grad_norm", "h.1.grad_norm", "loss"]
    assert sum(patterns.matches(pattern, name) for name in names) == matching


def view_of(*found: events.Event) -> RunView:
    view = RunView("run")
    for event in found:
        view.fold(event)
    return view


PAUSE, STOP = (events.Command(time=102, step=1, name=name) for name in ("pause", "stop"))
STARTED = events.RunStarted(name="run", time=100.0, max_steps=10)
STEP = events.Step(
    time=101.0, step=1, loss=2.0, lr=0.1, grad_norm=1.0, tokens=8, tokens_per_s=8.0, step_s=1.0
)


@pytest.mark.parametrize(
    ("found", "alive", "now", "word", "live"),
    [
        ((), None, 101, "waiting", True),
        ((), False, 101, "crashed", False),
        ((STARTED, STEP), True, 102, "running", True),
        ((STARTED, STEP), True, 500, "stalled", True),
        ((STARTED, STEP), None, 500, "silent", False),
        ((STARTED, STEP), False, 102, "crashed", False),
        ((STARTED, STEP, PAUSE), True, 103, "paused", True),
        ((STARTED, STEP, STOP), True, 103, "stopping", True),
        ((STARTED, STEP, events.RunEnded(time=102, step=1, reason="early_stop")), True, 103,
         "stopped early", False),
    ],
)  # fmt: skip
def test_liveness(
    found: tuple[events.Event, ...], alive: bool | None, now: float, word: str, live: bool
) -> None:
    state = liveness.judge(view_of(*found), now, alive)
    assert (state.word, state.live) == (word, live)


def test_history_keeps_the_odd_sample_when_it_is_halved() -> None:
    item = StatisticHistory()
    for step in range(8):
        item.append(step, np.array([9.0 if step == 4 else 1.0, float(step)]))
    item.merge()
    assert len(item.steps) == 4
    assert item.values[:, 0].max() == 9.0
    item.truncate(3)
    assert item.steps["step"].tolist() == [1, 3]
    assert len(Steps()) == 0
    assert math.isnan(Steps().recent("loss"))


@given(texts, st.integers(1, 200), st.booleans())
def test_the_header_fits_any_width(name: str, width: int, ascii_only: bool) -> None:
    view = view_of(STARTED, STEP)
    view.name = name
    row = header.header(view, liveness.State("running", "ok", live=True), width,
                        ascii_only=ascii_only)  # fmt: skip
    assert sum(cell_len(text) for text, _ in row) <= max(width, 14)


@given(st.lists(st.tuples(texts, texts, st.just("1,234,567"), texts), max_size=4),
       st.integers(20, 100), st.integers(0, 3))  # fmt: skip
def test_tables_of_panes_fit_any_width(lines: list[tuple[str, ...]], width: int, name: int) -> None:
    rows = panes.table(("a", "b", "step", "d"), lines, 0, width, name=name)
    assert len(rows) == len(lines) + 1
    assert all(sum(cell_len(text) for text, _ in row) <= width for row in rows)
    assert all(cell_len(line) <= width for line in panes.wrap("".join(map("".join, lines)), width))


@pytest.mark.parametrize("size", [len, cell_len])
@given(text=st.text(max_size=40) | st.text("宽字🚀ab", max_size=20), room=st.integers(0, 40))
def test_shortening_keeps_both_ends(text: str, room: int, size: Callable[[str], int]) -> None:
    short = units.shortened(text, room, size)
    assert size(short) <= room or size(text) <= room
    if size(text) > room > 2:
        assert "…" in short
        head, _, tail = short.partition("…")
        assert text.startswith(head)
        assert text.endswith(tail)


@given(st.text(max_size=40))
def test_the_harmless_filter_leaves_no_control_character(text: str) -> None:
    (segment,) = Harmless().apply([Segment(text)], Color(0, 0, 0))
    assert not any(unicodedata.category(character) == "Cc" for character in segment.text)


def test_the_help_dialog_has_a_row_for_every_key_and_word(tmp_path: Path) -> None:
    groups = {key.group for key in keys.KEYS}
    desk = Desk([RunSession(tmp_path)], Workspace(tmp_path), readonly=True)
    said = words.on_page("overview", desk.view.layers.names())
    dialog = dialogs.HelpScreen("overview", desk)
    assert dialog.text().row_count == len(keys.KEYS) + len(groups) + len(keys.MOUSE) + 1
    assert dialog.words().row_count == len(said)


def test_every_page_and_statistic_has_its_words() -> None:
    for page in keys.PAGES:
        assert words.on_page(page), page
        for word, meaning in words.on_page(page):
            assert all(map(str.strip, (word, meaning)))
            assert words.plain(word).isascii(), word
    assert all(stat.about for stat in heat.STATISTICS.values())
    said = dict(words.on_page("layers", list(heat.STATISTICS)))
    assert {stat.label for stat in heat.STATISTICS.values()} <= said.keys()


def test_a_key_of_the_y_axis_says_that_the_chart_keeps_it() -> None:
    """The rule of the help: keys of one group act alike."""
    group = {key.action.partition("(")[0]: key.group for key in keys.KEYS}
    shared = {group[name] for name in ("zoom", "pan", "axis", "log_x", "smooth", "crosshair")}
    own = {group[name] for name in ("log_y", "robust", "freeze_y")}
    assert len(shared) == len(own) == 1
    assert "every page" in shared.pop()
    assert "focus" in own.pop()


@pytest.mark.parametrize("page", keys.PAGES)
def test_keys_of_a_page_do_something_there(page: str) -> None:
    """A key that a footer or the help offers on a page is one that the page answers."""
    pages = {"overview": OverviewPage, "layers": LayersPage, "compare": ComparePage,
             "samples": SamplesPage, "logs": LogsPage, "system": SystemPage,
             "runs": RunsPage}  # fmt: skip
    for name in ("metric", "row", "turn", "open", "alternate"):
        answered = getattr(pages[page], name) is not getattr(Page, name)
        assert (name in keys.actions_on(page)) == answered, name


@pytest.mark.parametrize(("line", "share"), [("", 0.5), (',"processes":4', 0.125)])
def test_mfu_is_a_share_of_the_peak_of_all_devices(line: str, share: float) -> None:
    """A log of before says nothing of processes and had one."""
    started = '{"type":"run_started","name":"x","flops_per_token":6.0,"peak_flops":1200.0'
    step = events.Step(step=1, loss=1.0, lr=0.1, grad_norm=1.0, tokens=1, tokens_per_s=100.0)
    view = RunView()
    for text in (f"{started}{line}}}", events.encode(step)):
        event = events.decode(text)
        assert event is not None
        view.fold(event)
    assert view.mfu == share
