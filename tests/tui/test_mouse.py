"""The mouse does what keys do, where it points."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import SIZES, dashboard, load, opened, press, screen, settle
from textual import events
from textual.pilot import Pilot

from nanogpt_cli.tui import keys
from nanogpt_cli.tui.widgets.charts import LineChart
from nanogpt_cli.tui.widgets.panes import Pane


async def mouse(
    pilot: Pilot[object], kind: type[events.MouseEvent], place: tuple[int, int], button: int = 0
) -> None:
    await pilot._post_mouse_events([kind], offset=place, button=button)
    await settle(pilot)


@pytest.mark.parametrize("log", [False, True])
async def test_a_click_puts_the_crosshair_there_and_a_drag_moves_it(runs: Path, log: bool) -> None:
    async with opened(load(runs / "small-shakespeare")) as pilot:
        await press(pilot, *["X"] * log)
        desk, chart = dashboard(pilot).desk, dashboard(pilot).query_one("#loss", LineChart)
        assert chart.drawn is not None
        left = chart.content_region.x + chart.drawn.left
        for column, button, kind in (
            (20, 1, events.MouseDown), (40, 1, events.MouseMove), (50, 0, events.MouseMove),
        ):  # fmt: skip
            await mouse(pilot, kind, (left + column, 10), button)
            at = min(column, 40)  # without a button nothing moves
            low, high = chart.drawn.x.edges(chart.drawn.width)[at:][:2]
            assert desk.window.cursor is not None
            assert low < desk.window.cursor < high
        assert f"step {desk.window.cursor:,.0f}" in screen(pilot)
        await mouse(pilot, events.MouseDown, (left - 2, 10), 1)  # on the axis: nothing
        assert low < desk.window.cursor < high


async def test_before_the_first_evaluation_there_is_no_value_of_one(runs: Path) -> None:
    async with opened(load(runs / "small-shakespeare")) as pilot:
        chart = dashboard(pilot).query_one("#loss", LineChart)
        assert chart.drawn is not None
        await mouse(pilot, events.MouseDown, (chart.content_region.x + chart.drawn.left, 10), 1)
        assert "val –" in screen(pilot)


async def test_the_wheel_zooms_around_the_pointer(runs: Path) -> None:
    async with opened(load(runs / "small-shakespeare")) as pilot:
        desk, chart = dashboard(pilot).desk, dashboard(pilot).query_one("#loss", LineChart)
        assert chart.drawn is not None
        column = 30
        place = (chart.content_region.x + chart.drawn.left + column, 10)
        before = chart.position(chart.drawn.left + column)
        for _ in range(4):
            await mouse(pilot, events.MouseScrollUp, place)
        assert desk.window.low is not None
        assert desk.window.high is not None
        assert desk.window.high - desk.window.low == pytest.approx(2000 / 1.25**4, rel=0.01)
        assert chart.position(chart.drawn.left + column) == pytest.approx(before, abs=30)
        for _ in range(5):
            await mouse(pilot, events.MouseScrollDown, place)
        assert desk.window.low is None


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_the_bottom_line_is_clicked(runs: Path, size: tuple[int, int]) -> None:
    async with opened(load(runs / "small-shakespeare"), size) as pilot:
        app = dashboard(pilot)
        for page in keys.PAGES:
            line = screen(pilot).splitlines()[-1]
            await pilot.click(offset=(line.index(f" {keys.number(page)}") + 1, size[1] - 1))
            await settle(pilot)
            assert app.page.id == page
        help_at = screen(pilot).splitlines()[-1].index("? help")
        await pilot.click(offset=(help_at + 3, size[1] - 1))
        await settle(pilot)
        assert "words, and keys below" in screen(pilot)
        await pilot.click(offset=(1, size[1] - 1))  # beside the dialog: nothing
        assert "words, and keys below" in screen(pilot)


async def test_a_row_is_chosen_by_a_click_and_opened_by_two(runs: Path) -> None:
    async with opened(load(runs / "small-shakespeare"), page="runs") as pilot:
        desk, top = dashboard(pilot).desk, dashboard(pilot).query_one("#list", Pane).content_region
        names = [entry.name for entry in desk.workspace.rows()]

        def chosen() -> str:
            entry = desk.workspace.entry()
            assert entry is not None
            return entry.name

        for number in (2, 0, 1):
            await pilot.click(offset=(30, top.y + 1 + number))
            await settle(pilot)
            assert chosen() == names[number]
        await pilot.click(offset=(30, top.y))  # the heads are no row
        await pilot.click(offset=(30, top.y + 9))  # nor is what lies below
        assert chosen() == names[1]
        await mouse(pilot, events.MouseScrollDown, (30, top.y + 1))
        assert chosen() == names[2]
        await pilot.click(offset=(30, top.y + 1), times=2)
        await settle(pilot)
        assert dashboard(pilot).page.id == "overview"
        assert desk.session.folder.path.name == names[0]


@pytest.mark.parametrize("page", ["compare", "samples", "logs"])
async def test_every_list_follows_the_mouse(runs: Path, page: str) -> None:
    async with opened(load(runs / "small-shakespeare"), page=page) as pilot:
        pane = next(p for p in dashboard(pilot).page.query(Pane) if p.chosen is not None)
        top = pane.content_region.offset

        def chosen() -> str:
            assert pane.chosen is not None
            return pane.text().splitlines()[pane.chosen]

        for line in (1, 3, 2):
            wanted = pane.text().splitlines()[line]
            await pilot.click(offset=(top.x + 4, top.y + line))
            await settle(pilot)
            assert chosen() == wanted
        assert pane.chosen is not None
        wanted = pane.text().splitlines()[pane.chosen - 1]
        await mouse(pilot, events.MouseScrollUp, (top.x + 4, top.y + 1))
        assert chosen() == wanted
