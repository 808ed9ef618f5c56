"""Whether there is a terminal that the dashboard can be drawn on, and what it shows."""

from __future__ import annotations

import os
import sys

from rich.console import Console


def why_not() -> str:
    """The reason why no dashboard can be opened here; empty if one can.

    Textual draws on stderr and reads stdin; without a terminal it would write escape codes into
    files or pipes.
    """
    if os.environ.get("TERM", "") in ("dumb", "unknown"):
        return f"TERM={os.environ['TERM']} cannot place a cursor"
    for name, stream in (("stdin", sys.__stdin__), ("stderr", sys.__stderr__)):
        if stream is None or not stream.isatty():
            return f"{name} is not a terminal"
    return ""


def has_shades(console: Console | None = None) -> bool:
    """Whether it has the shades of a heat map, of which 16 colours leave two or three.

    ``console`` writes to it; by default one that is as Rich makes it.
    """
    console = console or Console(force_terminal=True, legacy_windows=False)
    return console.color_system in ("256", "truecolor")
