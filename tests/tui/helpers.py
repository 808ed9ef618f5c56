"""Opening the dashboard on recorded folders with a fixed clock, and reading its screen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from programs import LIMIT
from recorded import START
from textual.pilot import Pilot

from nanogpt_cli.tui import export
from nanogpt_cli.tui.actions import DashboardExit
from nanogpt_cli.tui.app import Dashboard
from nanogpt_cli.tui.state.session import RunSession

SIZES = [(120, 40), (80, 24), (60, 15)]


def clock() -> float:
    """Just after the recorded run's last event."""
    return START + 205.0


def load(*folders: Path, now: Any = clock) -> list[RunSession]:
    """Sessions that have read everything."""
    sessions = [RunSession(folder, clock=now) for folder in folders]
    for session in sessions:
        session.poll(1 << 22, float("inf"))
    return sessions


@asynccontextmanager
async def opened(
    sessions: Sequence[RunSession], size: tuple[int, int] = (120, 40), **settings: Any
) -> AsyncIterator[Pilot[DashboardExit]]:
    """A dashboard that draws when told to: nothing depends on real time."""
    app = Dashboard(sessions, live=False, **settings)
    app.animation_level = "none"
    async with app.run_test(size=size, notifications=True) as pilot:
        await settle(pilot)
        yield pilot


async def settle(pilot: Pilot[Any]) -> None:
    """Let focus, layout and the drawing after it come to rest."""
    for _ in range(3):
        await pilot.pause()


async def press(pilot: Pilot[Any], *names: str) -> None:
    """Press keys one by one."""
    for name in names:
        await pilot.press(name)
        await settle(pilot)


async def until(pilot: Pilot[Any], true: Callable[[], bool]) -> None:
    """Let the app go on until something holds."""
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end, "it never came true"
        await pilot.pause()
        await asyncio.sleep(0.01)  # for a thread or a timer, and not busily


def screen(pilot: Pilot[Any]) -> str:
    """The text on the screen."""
    return export.screen_text(pilot.app)


def dashboard(pilot: Pilot[Any]) -> Dashboard:
    """The app, typed."""
    assert isinstance(pilot.app, Dashboard)
    return pilot.app


def look(pilot: Pilot[Any]) -> None:
    """Read the logs and draw what is new, as the dashboard does from time to time."""
    app = dashboard(pilot)
    for session in app.desk.sessions:
        session.poll(max_seconds=float("inf"))
    if not app.desk.held:
        app.draw()
