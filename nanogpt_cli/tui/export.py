"""Saving of the focused pane or the screen as a picture and as numbers."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.segment import Segment, Segments

from nanogpt_cli import files

if TYPE_CHECKING:
    from textual.app import App
    from textual.strip import Strip

TITLE = "nanogpt"


def screen_strips(app: App[Any]) -> list[Strip]:
    """The lines of the whole screen. This is the only use of Textual's private compositor."""
    return list(app.screen._compositor.render_strips())


def screen_text(app: App[Any]) -> str:
    """The screen without colours."""
    return "\n".join(strip.text.rstrip() for strip in screen_strips(app)) + "\n"


def svg_of(lines: list[list[Segment]], width: int, title: str) -> str:
    """An SVG of lines of segments; the same content gives the same bytes."""
    console = Console(
        width=width, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor",
        legacy_windows=False,
    )  # fmt: skip
    for line in lines:
        console.print(Segments([*line, Segment.line()]), end="", soft_wrap=True)
    return console.export_svg(title=title, unique_id="nanogpt")


def screen_svg(app: App[Any], title: str) -> str:
    """A picture of the whole screen."""
    lines = [list(strip) for strip in screen_strips(app)]
    return svg_of(lines, app.size.width, title)


def export_pane(app: App[Any], folder: Path) -> list[Path]:
    """Save the focused pane (or else the screen) as SVG, and as CSV if it contains numbers."""
    pane = app.focused
    region = pane.region if pane is not None else app.screen.region
    lines = [
        list(strip.crop(region.x, region.right))
        for strip in screen_strips(app)[region.y : region.bottom]
    ]
    name = re.sub(r"[^A-Za-z0-9]+", "-", (pane.id if pane is not None and pane.id else "screen"))
    picture = _fresh(folder, name, "svg")
    files.write_text(picture, svg_of(lines, region.width, TITLE))
    saved = [picture]
    if pane is not None and hasattr(pane, "csv"):
        saved.append(picture.with_suffix(".csv"))
        files.write_text(saved[-1], pane.csv())
    return saved


def _fresh(folder: Path, name: str, suffix: str) -> Path:
    """A file name that is not taken yet."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (path := folder / f"{name}-{number}.{suffix}").exists():
        number += 1
    return path
