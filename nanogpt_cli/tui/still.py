"""One frame of the dashboard without a terminal: as plain or coloured text, or as a picture."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.segment import Segment, Segments

from nanogpt_cli.tui import export
from nanogpt_cli.tui.app import Dashboard
from nanogpt_cli.tui.drawing import picture
from nanogpt_cli.tui.state.session import RunSession
from nanogpt_cli.tui.state.workspace import Workspace


@dataclass(frozen=True)
class Still:
    """A rendered frame as plain text, SVG and ANSI text."""

    text: str
    svg: str
    ansi: str


def load(sessions: Sequence[RunSession]) -> None:
    """Read the logs of all sessions to their current end."""
    for session in sessions:
        session.poll(1 << 22, float("inf"))


def still(
    sessions: Sequence[RunSession],
    size: tuple[int, int],
    *,
    page: str = "overview",
    theme: str | None = None,
    ascii_only: bool = False,
    ramp: bool = False,
    title: str = "nanogpt watch",
    workspace: Workspace | None = None,
) -> Still:
    """Draw one frame of ``size`` (columns, rows) from sessions that are loaded.

    ``ramp`` draws heat maps of characters, which are visible without colours.
    """
    app = Dashboard(
        sessions, workspace=workspace, ascii_only=ascii_only, ramp=ramp, theme=theme, page=page,
        live=False, still=True,
    )  # fmt: skip
    return asyncio.run(_still(app, size, title))


async def _still(app: Dashboard, size: tuple[int, int], title: str) -> Still:
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        await pilot.pause()
        lines = [list(strip) for strip in export.screen_strips(app)]
        svg = picture.svg(lines, size[0], title)
        return Still(export.screen_text(app), svg, _ansi(lines, size[0]))


def _ansi(lines: list[list[Segment]], width: int) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, force_terminal=True, legacy_windows=False)
    for line in lines:
        console.print(Segments([*line, Segment.line()]), end="", soft_wrap=True)
    return buffer.getvalue()
