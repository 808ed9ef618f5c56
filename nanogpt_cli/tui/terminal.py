"""Whether there is a terminal that the dashboard can be drawn on."""

from __future__ import annotations

import os
import sys


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
