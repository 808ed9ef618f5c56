"""Page Runs in a dashboard that follows: with the reader's thread, and with runs opened from it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import clock, dashboard, press, screen, until
from recorded import write_run
from textual.pilot import Pilot

from nanogpt_cli.run.remote import status
from nanogpt_cli.run.remote.status import Status
from nanogpt_cli.tui import keys
from nanogpt_cli.tui.app import Dashboard
from nanogpt_cli.tui.pages import runs_table
from nanogpt_cli.tui.state import far
from nanogpt_cli.tui.state import workspace as workspace_module
from nanogpt_cli.tui.state.session import RunSession
from nanogpt_cli.tui.state.workspace import Workspace


@asynccontextmanager
async def following(
    root: Path, *names: str, size: tuple[int, int] = (120, 40), page: str = "runs", **settings: Any
) -> AsyncIterator[Pilot[Any]]:
    """A dashboard of some runs of a folder as ``nanogpt watch`` opens it."""
    sessions = [RunSession(root / name, clock=clock) for name in names]
    readonly = settings.get("readonly", False)
    workspace = settings.pop("workspace", None) or Workspace(root, clock=clock, readonly=readonly)
    app = Dashboard(sessions, page=page, workspace=workspace, **settings)
    app.animation_level = "none"
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: not app.desk.loading)
        yield pilot


def short(path: Path, **settings: Any) -> Path:
    """A run of few steps."""
    known = {"layers": 2, "steps": 20, "max_steps": 20, "spike": None, "ended": "finished"}
    return write_run(path, **(known | settings))


async def test_the_list_follows_its_folder(tmp_path: Path) -> None:
    short(tmp_path / "first")
    short(tmp_path / "second")
    async with following(tmp_path, "first") as pilot:
        await until(pilot, lambda: "2 of 2" in screen(pilot))
        short(tmp_path / "third")
        await until(pilot, lambda: "third" in screen(pilot) and "3 of 3" in screen(pilot))
        shutil.rmtree(tmp_path / "second")
        await until(pilot, lambda: "second" not in screen(pilot))
        await press(pilot, "1")
        assert "loss" in screen(pilot)


def copied(path: Path, **settings: Any) -> Path:
    """The copy of a run on another machine."""
    there = Status("gpu1:small", "gpu1", "small", connected=True, since=clock(), alive=True)
    status.write(short(path, ended="", host="elsewhere", **settings), there)
    return path


async def test_a_copy_is_listed_as_its_machine_tells_and_keeps_no_notes(tmp_path: Path) -> None:
    copied(tmp_path / "far")
    short(tmp_path / "near")
    before = sorted((tmp_path / "far").iterdir())
    async with following(tmp_path, "near") as pilot:
        workspace = dashboard(pilot).desk.workspace
        await until(pilot, lambda: len(workspace.entries) == 2 and not workspace.busy)
        workspace.current = tmp_path.resolve() / "far"
        entry = workspace.entry()
        assert entry is not None
        assert (entry.state.word, entry.state.live) == ("stalled", True)  # here: silent, not live
        for key in ("n", "T"):
            await press(pilot, key)
            assert "a copy of a run on another machine" in screen(pilot)
            assert len(pilot.app.screen_stack) == 1
        await press(pilot, "p", "c", "h")
        assert entry.notes.pinned
        await press(pilot, "H")
        workspace.current = entry.path  # it had gone to the next run
        await press(pilot, "d")
        assert "far is not deleted: it is a copy" in screen(pilot)
        assert sorted((tmp_path / "far").iterdir()) == before


async def test_runs_that_were_opened_together_stay_open(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        short(tmp_path / name)
    async with following(tmp_path, "a", "b") as pilot:
        app = dashboard(pilot)
        await until(pilot, lambda: "3 of 3" in screen(pilot))
        for name in ("c", "b"):
            app.desk.workspace.current = tmp_path.resolve() / name
            await press(pilot, "7", "enter")
            await until(pilot, lambda: not app.desk.loading)
        assert [session.folder.name for session in app.desk.sessions] == ["b", "a"]
        app.desk.workspace.current = tmp_path.resolve() / "a"
        await press(pilot, "7", "space")
        app.desk.workspace.current = tmp_path.resolve() / "a"
        await press(pilot, "space", "3")
        assert [session.folder.name for session in app.desk.compared] == ["b", "a"]


async def test_a_run_opened_while_another_is_held_is_drawn(tmp_path: Path) -> None:
    for name in ("a", "b"):
        short(tmp_path / name)
    async with following(tmp_path, "a", page="overview") as pilot:
        app = dashboard(pilot)
        await press(pilot, "space", "7")
        await until(pilot, lambda: "2 of 2" in screen(pilot))
        app.desk.workspace.current = tmp_path.resolve() / "b"
        await press(pilot, "enter")
        await until(pilot, lambda: " b  ● finished  step 20/20" in screen(pilot))
        assert "held" not in screen(pilot)


def test_logs_are_read_however_long_it_takes_to_list_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(short(tmp_path / "run").parent, clock=clock)
    listing, now = workspace_module._folders, [0.0]

    def slow(root: Path) -> list[Path]:
        now[0] += 10.0
        return listing(root)

    monkeypatch.setattr(workspace_module, "_folders", slow)
    monkeypatch.setattr(workspace_module.time, "monotonic", lambda: now[0])
    workspace.look(0.05)
    assert [entry.read for entry in workspace.entries.values()] == [True]


async def test_compare_opens_a_copy_as_a_copy(tmp_path: Path) -> None:
    copied(tmp_path / "far")
    short(tmp_path / "near")
    async with following(tmp_path, "near", page="compare") as pilot:
        desk = dashboard(pilot).desk
        await until(pilot, lambda: "far" in screen(pilot))
        await press(pilot, "j", "enter")
        await until(pilot, lambda: len(desk.sessions) == 2)
        assert isinstance(desk.sessions[1], far.FarSession)


@pytest.mark.parametrize("readonly", [False, True])
async def test_readonly_saves_pictures_outside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readonly: bool
) -> None:
    run, here = short(tmp_path / "runs" / "run"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    async with following(run.parent, "run", page="overview", readonly=readonly) as pilot:
        await press(pilot, "e")
        assert (run / "exports").exists() is not readonly
        assert len(list(here.glob("*.svg"))) == readonly


@pytest.mark.parametrize("readonly", [False, True])
def test_a_footer_names_no_key_that_may_not_write(readonly: bool) -> None:
    footer = "".join(text for text, _ in keys.footer("runs", 200, readonly))
    assert ("note" in footer, "tags" in footer) == (not readonly, not readonly)
    delete = next(key for key in keys.KEYS if key.action == "delete")
    assert keys.offered(delete, "runs", readonly) is not readonly


@pytest.mark.parametrize(
    "name", ["z" * 200, "漢" * 60, "up\x1b[31m\u202e" * 5 + "end"], ids=["long", "wide", "raw"]
)
async def test_dialogs_name_any_run_and_their_keys_on_a_small_screen(
    tmp_path: Path, name: str
) -> None:
    short(tmp_path / name)
    async with following(tmp_path, name, size=(60, 15)) as pilot:
        await until(pilot, lambda: "1 of 1" in screen(pilot))
        await press(pilot, "d")
        assert "y yes    n no" in screen(pilot)
        assert name[-1:] in screen(pilot)
        assert ("\\x1b" in screen(pilot)) is not name.isprintable()
        await press(pilot, "n", "n")
        assert "enter accepts" in screen(pilot)
        assert "\x1b" not in screen(pilot)


async def test_a_run_that_is_gone_does_not_come_back_with_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, here = short(tmp_path / "runs" / "run"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    async with following(run.parent, "run", page="overview") as pilot:
        shutil.rmtree(run)
        await press(pilot, "e", "2", "3", "4", "5", "6", "7", "1")
        assert "run" in screen(pilot)
    assert not run.exists()
    assert list(here.glob("*.svg"))


async def test_a_browser_that_may_only_read_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = short(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Dashboard, "is_web", True)
    before = sorted(tmp_path.rglob("*"))
    async with following(tmp_path, run.name, page="overview", readonly=True) as pilot:
        await press(pilot, "e")
        assert "read-only: nothing is saved" in screen(pilot)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_age_fits_its_column() -> None:
    day = 86400.0
    ages = [runs_table.age(s) for s in (0, 59, 3599, day - 1, 364.9 * day, 1112 * day, 40000 * day)]
    assert ages == ["0s", "59s", "59m", "23h", "364d", "3y", "109y"]
