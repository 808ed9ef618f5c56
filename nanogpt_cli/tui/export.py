"""Saving of the focused pane or the screen as a picture and as numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli import files
from nanogpt_cli.tui.drawing import picture

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


def screen_svg(app: App[Any], title: str) -> str:
    """A picture of the whole screen."""
    return picture.svg([list(strip) for strip in screen_strips(app)], app.size.width, title)


def export_pane(app: App[Any], folder: Path) -> list[Path]:
    """Save the focused pane (or else the screen) as SVG, and as CSV if it contains numbers."""
    pane = app.focused
    region = pane.region if pane is not None else app.screen.region
    lines = [
        list(strip.crop(region.x, region.right))
        for strip in screen_strips(app)[region.y : region.bottom]
    ]
    name = re.sub(r"[^A-Za-z0-9]+", "-", (pane.id if pane is not None and pane.id else "screen"))
    path = _fresh(folder, name, "svg")
    files.write_text(path, picture.svg(lines, region.width, TITLE))
    saved = [path]
    if pane is not None and hasattr(pane, "csv"):
        saved.append(path.with_suffix(".csv"))
        files.write_text(saved[-1], pane.csv())
    return saved


def _fresh(folder: Path, name: str, suffix: str) -> Path:
    """A file name that is not taken yet."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (path := folder / f"{name}-{number}.{suffix}").exists():
        number += 1
    return path
