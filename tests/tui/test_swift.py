"""The dashboard answers keys in one complete frame, and its short cuts change no picture."""

from __future__ import annotations

import gc
import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SIZES, dashboard, load, look, opened, press, screen, settle
from rich.console import RenderableType
from textual._compositor import CompositorUpdate
from textual.geometry import Region
from textual.screen import Screen
from textual.strip import Strip

from nanogpt_cli.tui import export, keys, swift
from nanogpt_cli.tui.app import Dashboard
from nanogpt_cli.tui.state.history import Steps
from nanogpt_cli.tui.state.series import MANY, Columns, Smoothed
from nanogpt_cli.tui.widgets.rows import RowsWidget


def drawn(lines: list[Strip]) -> list[list[tuple[str, str]]]:
    """Every cell with its style."""
    return [
        [(char, str(segment.style)) for segment in line for char in segment.text] for line in lines
    ]


def assert_twins_agree(app: Dashboard) -> None:
    for pane in app.page.query(RowsWidget):
        if region := pane.region.reset_offset:  # else another pane is maximised
            assert drawn(pane.render_lines(region)) == drawn(pane.slow_lines(region)), pane


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "settings", [{}, {"ascii_only": True}, {"theme": "textual-light"}], ids=str
)
async def test_finished_lines_are_those_that_textual_makes(
    recordings: Path, size: tuple[int, int], settings: dict[str, object]
) -> None:
    sessions = load(recordings / "small-shakespeare", recordings / "deep")
    async with opened(sessions, size, **settings) as pilot:  # type: ignore[arg-type]
        for name in keys.PAGES:
            await press(pilot, keys.number(name))
            assert_twins_agree(dashboard(pilot))
            # Another focus, another theme, other titles and other rows.
            for key in ("tab", "t", "right_square_bracket", "c", "z", "z"):
                await press(pilot, key)
                assert_twins_agree(dashboard(pilot))


async def test_finished_lines_follow_a_run_and_the_screen(runs: Path) -> None:
    whole = (runs / "small-shakespeare" / "events.jsonl").read_bytes()
    half = whole.index(b'"step":1000,')
    cut = whole.rindex(b"\n", 0, half) + 1
    (runs / "small-shakespeare" / "events.jsonl").write_bytes(whole[:cut])
    async with opened(load(runs / "small-shakespeare")) as pilot:
        with (runs / "small-shakespeare" / "events.jsonl").open("ab") as log:
            log.write(whole[cut:])
        look(pilot)
        await settle(pilot)
        assert_twins_agree(dashboard(pilot))
        await pilot.resize_terminal(90, 30)
        await settle(pilot)
        assert_twins_agree(dashboard(pilot))


async def test_a_part_of_a_pane_is_cut_out_of_it(recordings: Path) -> None:
    async with opened(load(recordings / "small-shakespeare")) as pilot:
        pane = pilot.app.query_one("#loss", RowsWidget)
        part = Region(3, 0, 20, 9)
        assert drawn(pane.render_lines(part)) == drawn(pane.slow_lines(part))


class Counting(Dashboard):
    """Keeps what is on the screen after each frame."""

    CSS_PATH = Path(inspect.getfile(Dashboard)).with_name("dashboard.tcss")
    frames: list[str]

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        super()._display(screen, renderable)
        if isinstance(renderable, CompositorUpdate):
            self.frames.append(export.screen_text(self))


@pytest.mark.parametrize("again", [False, True])
async def test_the_first_frame_of_a_page_is_complete(recordings: Path, again: bool) -> None:
    app = Counting(load(recordings / "small-shakespeare"), live=False)
    app.animation_level, app.frames = "none", []
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        for visit in range(1 + again):
            for name in ("layers", "compare", "samples", "logs", "runs", "overview"):
                app.frames.clear()
                await press(pilot, keys.number(name))
                # A grid of charts has its shape once it has been drawn.
                if visit or name != "compare":
                    assert app.frames[0] == screen(pilot), name


async def test_a_page_that_was_chosen_at_once_stays_in_front(recordings: Path) -> None:
    app = Dashboard(load(recordings / "small-shakespeare"), live=False)
    app.animation_level = "none"
    async with app.run_test(size=(120, 40)) as pilot:
        app.action_page("layers")
        app._start()  # as if the key had come before the first picture
        await settle(pilot)
        assert app.page.id == "layers"
        assert "residual stream RMS" in screen(pilot)


def test_the_interpreter_is_left_as_it_was() -> None:
    gc.unfreeze()  # what an earlier test of this process may have left
    before = sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count()
    with swift.swift():
        assert sys.getswitchinterval() == pytest.approx(swift.SWITCH)
        assert gc.get_freeze_count() > 0
    assert (sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count()) == before


def test_columns_grow_one_after_the_other() -> None:
    columns = Columns(a="f8", b="f4", c="?", d="f8")
    sizes, most = [len(store) for store in columns._store.values()], 0
    rng = np.random.default_rng(0)
    kept: list[np.ndarray] = []
    for _ in range(400):
        rows = rng.integers(0, 2, 100).astype(float)
        kept.append(rows)
        columns.extend(dict.fromkeys("abcd", rows))
        now = [len(store) for store in columns._store.values()]
        if len(columns) > 2000:
            most = max(most, sum(a != b for a, b in zip(sizes, now, strict=True)))
        sizes = now
    assert most == 1
    assert all(np.array_equal(columns[name], np.concatenate(kept)) for name in "abcd")


def test_averages_that_follow_at_once_are_the_same() -> None:
    """What is read in large pieces is averaged piece by piece, without a drawing in between."""
    rng, pieces = np.random.default_rng(0), 5
    values = rng.standard_normal(pieces * MANY).astype(np.float32)
    steps = Steps()
    for piece in range(pieces):
        at = np.arange(piece * MANY, (piece + 1) * MANY)
        table = {name: np.ones(MANY) for name in ("lr", "grad_norm", "tokens_per_s", "step_s")}
        steps.extend({
            **table, "step": at + 1.0, "loss": values[at], "tokens": at + 1.0, "time": at + 1.0,
            "clipped": np.zeros(MANY),
        })  # fmt: skip
        if piece == 0:
            steps.smooth("loss", 0.9)
            steps.columns.extremes("loss")
    assert len(steps._smooth["loss", 0.9].values) == pieces * MANY
    assert len(steps.columns._extremes["loss"]) == pieces * MANY // 64
    whole = Smoothed(0.9).update(values)
    np.testing.assert_allclose(steps.smooth("loss", 0.9), whole, rtol=1e-6, atol=1e-6)
