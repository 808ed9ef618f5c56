"""Page Runs in a dashboard that follows: with the reader's thread, and with runs opened from it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from helpers import clock, press, screen, until
from recorded import write_run
from textual.pilot import Pilot

from nanogpt_cli.tui.app import Dashboard
from nanogpt_cli.tui.session import RunSession
from nanogpt_cli.tui.workspace import Workspace


@asynccontextmanager
async def following(
    root: Path, *names: str, page: str = "runs", **settings: Any
) -> AsyncIterator[Pilot[Any]]:
    """A dashboard of some runs of a folder as ``nanogpt watch`` opens it."""
    sessions = [RunSession(root / name, clock=clock) for name in names]
    readonly = settings.get("readonly", False)
    workspace = settings.pop("workspace", None) or Workspace(root, clock=clock, readonly=readonly)
    app = Dashboard(sessions, page=page, workspace=workspace, **settings)
    app.animation_level = "none"
    async with app.run_test(size=(120, 40)) as pilot:
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
