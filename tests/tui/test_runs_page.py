"""Page Runs: a list that follows its folder, and what its keys do."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import recorded
from helpers import SIZES, clock, dashboard, load, look, opened, press, screen
from textual.pilot import Pilot
from textual.widgets import Input

from nanogpt_cli.run import events, notes
from nanogpt_cli.run.commands import take_commands
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.tui.drawing import curves, palette
from nanogpt_cli.tui.pages import compare_grid
from nanogpt_cli.tui.pages.compare import ComparePage
from nanogpt_cli.tui.state.workspace import SORTS, Workspace
from nanogpt_cli.tui.widgets.charts import LineChart

ALL_SIZES = [*SIZES, (200, 60)]
TWO_SIZES = [(60, 15), (120, 40)]  # of what costs seconds


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs that differ in the seed, one of another rate, one that diverged."""
    root = tmp_path_factory.mktemp("seeds")
    for name, seed, lr, ended in (
        ("fast-1", 1, 1e-3, "finished"), ("fast-2", 2, 1e-3, "finished"),
        ("fast-3", 3, 1e-3, "finished"), ("slow", 4, 1e-4, "finished"),
        ("boom", 5, 1e-2, "diverged"),
    ):  # fmt: skip
        folder = recorded.write_run(root / name, layers=2, steps=60, max_steps=60, seed=seed, lr=lr,
                                    spike=None, eval_every=20, ended=ended)  # fmt: skip
        log = folder / "events.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        lines[0]["recipe"]["run"] = {"name": name, "seed": seed}
        for line in lines[-30:] if name == "boom" else ():
            line |= {"loss": 1e6} if line["type"] == "step" else {}
        log.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    return root


@pytest.fixture
def place(seeds: Path, tmp_path: Path) -> Path:
    """A private copy, to write into."""
    return Path(shutil.copytree(seeds, tmp_path / "runs"))


@asynccontextmanager
async def listed(
    root: Path, size: tuple[int, int] = (120, 40), **settings: Any
) -> AsyncIterator[Pilot[Any]]:
    """The dashboard on the list, sorted by name."""
    workspace = Workspace(root, clock=clock, readonly=settings.get("readonly", False))
    workspace.sort = "run"
    sessions = load(root / "slow")
    async with opened(sessions, size, page="runs", workspace=workspace, **settings) as pilot:
        yield pilot


def workspace_of(pilot: Pilot[Any]) -> Workspace:
    return dashboard(pilot).desk.workspace


async def fill(pilot: Pilot[Any], text: str, *then: str) -> None:
    """Type a text into the dialog in front, all at once."""
    pilot.app.screen.query_one(Input).value = text
    await press(pilot, *then)
    await pilot.pause()


def names(pilot: Pilot[Any]) -> list[str]:
    return [entry.name for entry in workspace_of(pilot).rows()]


@pytest.mark.parametrize("size", ALL_SIZES, ids=str)
async def test_a_list_shows_state_curve_and_best_at_every_size(
    seeds: Path, size: tuple[int, int]
) -> None:
    async with listed(seeds, size) as pilot:
        shown = screen(pilot)
        assert shown.startswith(" 5 runs  1 failed")
        row = next(line for line in shown.splitlines() if "fast-2" in line)
        assert "● finished" in row
        assert "█" in row
        best = f"{load(seeds / 'fast-2')[0].view.best_val_loss:.4f}"
        assert best in row
        assert "✖ diverged" in shown
        assert ("tok/s" in shown) == (size[0] >= 80)
        await press(pilot, "question_mark")
        assert "selected for Compare" in screen(pilot)


@pytest.mark.parametrize("size", TWO_SIZES, ids=str)
async def test_enter_opens_a_run_and_escape_comes_back(seeds: Path, size: tuple[int, int]) -> None:
    async with listed(seeds, size) as pilot:
        await press(pilot, "j", "j", "enter")
        look(pilot)
        await pilot.pause()
        app = dashboard(pilot)
        assert (app.page.id, app.desk.session.folder.name) == ("overview", "fast-2")
        assert len(app.desk.sessions) == 1  # the one before was closed
        await press(pilot, "c", "escape")
        assert app.page.id == "overview"  # the crosshair first
        await press(pilot, "escape")
        assert app.page.id == "runs"
        assert workspace_of(pilot).entry().name == "fast-2"  # type: ignore[union-attr]


async def test_a_dashboard_of_one_run_has_no_list_to_come_back_to(seeds: Path) -> None:
    async with opened(load(seeds / "slow")) as pilot:
        await press(pilot, "escape")
        assert dashboard(pilot).page.id == "overview"
        await press(pilot, "7")
        assert "5 of 5" in screen(pilot)  # the folder that it lies in


async def test_moving_goes_to_both_ends(seeds: Path) -> None:
    async with listed(seeds) as pilot:
        for key, name in (("end", "slow"), ("home", "boom"), ("pagedown", "slow"),
                          ("pageup", "boom"), ("down", "fast-1"), ("k", "boom")):  # fmt: skip
            await press(pilot, key)
            assert workspace_of(pilot).entry().name == name  # type: ignore[union-attr]


async def test_every_column_sorts_both_ways(seeds: Path) -> None:
    async with listed(seeds) as pilot:
        workspace, seen = workspace_of(pilot), set()
        for _ in SORTS:
            await press(pilot, "s")
            seen.add(workspace.sort)
            forth = names(pilot)
            value = SORTS[workspace.sort][0]
            order = [value(workspace.entries[(seeds / name).resolve()]) for name in forth]
            assert order in (sorted(order), sorted(order, reverse=True))
            await press(pilot, "r")
            if len(set(map(str, order))) == len(order):
                assert names(pilot) == forth[::-1]
        assert seen == set(SORTS)
        await press(pilot, "S")
        assert workspace.sort == "age"


@pytest.mark.parametrize("size", TWO_SIZES, ids=str)
async def test_a_filter_is_judged_as_it_is_typed(seeds: Path, size: tuple[int, int]) -> None:
    async with listed(seeds, size) as pilot:
        await press(pilot, "slash")
        await fill(pilot, "lrr>1")
        assert "no run has a field 'lrr': did you mean lr?" in screen(pilot)
        await press(pilot, "enter")
        assert "filter runs" in screen(pilot)  # it is not taken
        assert "enter accepts    esc cancels" in screen(pilot)
        await fill(pilot, "lr>=1e-3 -state:diverged")
        assert "3 of 5 runs match" in screen(pilot)
        await press(pilot, "enter")
        assert names(pilot) == ["fast-1", "fast-2", "fast-3"]
        assert "3 match lr>=1e-3" in screen(pilot)
        await press(pilot, "escape")
        assert len(names(pilot)) == 5
        await press(pilot, "slash")
        await fill(pilot, "nothing", "enter")
        assert "no run matches nothing; esc shows all" in screen(pilot)


@pytest.mark.parametrize("size", ALL_SIZES, ids=str)
async def test_pin_colour_hide_note_and_tags_are_kept_in_the_folder(
    place: Path, size: tuple[int, int]
) -> None:
    async with listed(place, size) as pilot:
        await press(pilot, "end", "p", "c", "c", "n")
        await fill(pilot, "slow start", "enter")
        await press(pilot, "T")
        await fill(pilot, "base x", "enter")
        assert names(pilot)[0] == "slow"
        found = notes.Notes("slow start", ("base", "x"), pinned=True, color=1)
        assert notes.read(RunFolder(place / "slow")) == found
        assert "★" in screen(pilot)
        await press(pilot, "T")
        await fill(pilot, "-y")
        assert "no tag 'y' to remove" in screen(pilot)
        await press(pilot, "escape", "h")
        assert "slow" not in names(pilot)
        assert "1 hidden" in screen(pilot)
        await press(pilot, "H")
        assert names(pilot)[0] == "slow"
    async with listed(place, size) as pilot:  # and there the next time
        assert names(pilot) == ["boom", "fast-1", "fast-2", "fast-3"]


async def test_a_run_under_the_cursor_is_told_in_full(place: Path) -> None:
    notes.change(RunFolder(place / "boom"), note="a\x1b[31m note", tags=("odd",))
    with (place / "boom" / "events.jsonl").open("a") as log:
        alarm = events.Alarm(step=60, kind="stuck", severity="warning", message="it is stuck")
        log.write(events.encode(alarm) + "\n")
    async with listed(place) as pilot:
        shown = screen(pilot)
        for said in ("#odd", "a\\x1b[31m note", "it is stuck", "lr 0.01", "▲1"):
            assert said in shown
        assert "\x1b" not in shown


async def test_runs_appear_change_and_go_by_themselves(place: Path) -> None:
    async with listed(place) as pilot:
        workspace = workspace_of(pilot)
        recorded.write_run(place / "new", layers=2, steps=20, max_steps=20)
        (place / "no-run").mkdir()
        assert workspace.look(10)
        assert "new" in names(pilot)
        assert "no-run" not in names(pilot)
        notes.change(RunFolder(place / "new"), note="by the shell")
        with (place / "new" / "events.jsonl").open("a") as log:
            step = events.Step(step=21, loss=1.25, lr=None, grad_norm=None, tokens=1,
                               tokens_per_s=None)  # fmt: skip
            log.write(events.encode(step) + "\n")
        assert workspace.look(10)
        new = workspace.entries[(place / "new").resolve()]
        assert (new.summary.step, new.notes.note) == (21, "by the shell")
        (place / "new" / "events.jsonl").unlink()
        (place / "new").rename(place.parent / "elsewhere")
        assert workspace.look(10)
        assert "new" not in names(pilot)
        assert not workspace.look(10)


@pytest.mark.parametrize("size", TWO_SIZES, ids=str)
async def test_a_run_is_deleted_after_y_alone(place: Path, size: tuple[int, int]) -> None:
    async with listed(place, size) as pilot:
        await press(pilot, "j", "d")
        assert "Delete fast-1 for ever?" in screen(pilot)
        for answer in ("enter", "n", "escape"):
            await press(pilot, answer, "ctrl+d")
        assert (place / "fast-1").exists()
        await press(pilot, "y")
        assert not (place / "fast-1").exists()
        assert "deleted" in screen(pilot)
        assert names(pilot) == ["boom", "fast-2", "fast-3", "slow"]
        assert workspace_of(pilot).entry().name == "fast-2"  # type: ignore[union-attr]
    assert sorted(path.name for path in place.iterdir()) == ["boom", "fast-2", "fast-3", "slow"]


async def test_what_is_not_deleted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in training, a link, and a folder that holds more than a run."""
    monkeypatch.chdir(place.parent)  # where paths are short
    recorded.write_run(place / "a-live", layers=2, steps=20, pid=os.getpid(), host=platform.node())
    (place / "b-link").symlink_to(place.parent / "target")
    (place / "slow").rename(place.parent / "target")
    (place / "fast-1" / "main.py").touch()
    (place / "slow").symlink_to(place.parent / "target")
    (place / "a-live" / "lock").touch()
    with (place / "a-live" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with listed(Path("runs"), (160, 40)) as pilot:
            await press(pilot, "d")
            assert "it is being trained: stop the training first" in screen(pilot)
            await press(pilot, "y", "end", "d")
            assert "it is a link to" in screen(pilot)
            await press(pilot, "y", "home", "j", "j", "d")
            assert "it holds 'main.py', which is not part of a run" in screen(pilot)
            await press(pilot, "y")
    for path in (place / "a-live", place / "fast-1", place.parent / "target"):
        assert (path / "events.jsonl").exists()


async def test_readonly_writes_and_deletes_nothing(place: Path) -> None:
    before = sorted(place.rglob("*"))
    async with listed(place, readonly=True) as pilot:
        await press(pilot, "d", "y", "n")
        assert "read-only: nothing is written" in screen(pilot)
        await press(pilot, "T", "end", "p", "c", "home")
        assert names(pilot)[0] == "slow"  # as long as the dashboard is open
    assert sorted(place.rglob("*")) == before


async def test_keys_of_the_trainer_do_nothing_on_the_list(place: Path) -> None:
    """The run in front is not the one under the cursor."""
    async with listed(place) as pilot:
        await press(pilot, "P", "y", "K", "y", "E", "y", "M", "g")
        assert dashboard(pilot).page.id == "runs"
        assert len(pilot.app.screen_stack) == 1
        await press(pilot, "ctrl+c")
        assert not pilot.app.return_value.stop
    for run in place.iterdir():
        assert take_commands(RunFolder(run)) == []


@pytest.mark.parametrize("size", TWO_SIZES, ids=str)
async def test_selected_runs_are_compared_and_seeds_are_one_line(
    seeds: Path, size: tuple[int, int]
) -> None:
    async with listed(seeds, size) as pilot:
        await press(pilot, "space", "space", "space", "space")
        assert "4 selected" in screen(pilot)
        await press(pilot, "3")
        look(pilot)
        await press(pilot, "m")
        await fill(pilot, "loss lr resid_rms/*")
        assert "4 charts" in screen(pilot)
        await press(pilot, "enter")
        charts = [c for c in dashboard(pilot).query(LineChart) if c.display and c.size.width]
        charts = [c for c in charts if c.parent is not None and c.parent.id == "overlays"]
        assert charts
        first = {trace.name: trace for trace in charts[0].traces}
        assert set(first) == {"boom", "fast (3 seeds)", "range"}
        assert not first["boom"].scaling
        assert charts[0].drawn is not None
        assert charts[0].drawn.y.high < 10
        assert len({chart.full for chart in charts}) == 1  # one x axis
        assert len(charts) == (4 if size[0] >= 120 else len(charts))
        seen = len(charts)
        await press(pilot, "n", "right_square_bracket")
        shown = [c for c in dashboard(pilot).query(LineChart) if c.display and c.parent is not None
                 and c.parent.id == "overlays"]  # fmt: skip
        assert (len(shown), seen >= 1) == (1, True)


async def test_a_metric_that_no_run_holds_is_refused(seeds: Path) -> None:
    async with opened(load(seeds / "slow"), page="compare") as pilot:
        await press(pilot, "m")
        await fill(pilot, "lossy", "enter")
        assert "no run holds a metric like 'lossy'" in screen(pilot)
        await press(pilot, "escape")
        assert dashboard(pilot).query_one(ComparePage).chosen == ["loss"]


def test_a_mean_and_its_band_are_those_of_the_picture(seeds: Path) -> None:
    """``nanogpt runs plot`` and Compare draw the same numbers."""
    sessions = load(*(seeds / f"fast-{n}" for n in (1, 2, 3)))
    views = [session.view for session in sessions]
    shown = [compare_grid.Shown(view, palette.run_color(n)) for n, view in enumerate(views)]
    band, line = compare_grid.metric_traces(compare_grid.groups(shown), "loss", "tokens", 0)
    [curve] = curves.curves(views, curves.Wanted("loss", "tokens", 0.0))
    assert line.y.tolist() == curve.y.tolist()
    assert band.y[::2].tolist() == curve.low.tolist()
    assert band.y[1::2].tolist() == curve.high.tolist()
    assert line.name == "fast (3 seeds)"


def test_an_unreadable_folder_is_told(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "none")
    assert not workspace.look()
    assert workspace.rows() == []
    (tmp_path / "file").touch()
    assert not Workspace(tmp_path / "file").look()
