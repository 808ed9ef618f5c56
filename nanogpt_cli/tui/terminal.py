"""Is there a terminal that a dashboard can be drawn on?"""

from __future__ import annotations

import os
import sys


def why_not() -> str:
    """Why no dashboard can be opened here, in words; empty when one can.

    Textual draws on stderr and reads stdin; without a terminal it would write escape codes into
    whatever stands in for one.
    """
    if os.environ.get("TERM", "") in ("dumb", "unknown"):
        return f"TERM={os.environ['TERM']} cannot place a cursor"
    for name, stream in (("stdin", sys.__stdin__), ("stderr", sys.__stderr__)):
        if stream is None or not stream.isatty():
            return f"{name} is not a terminal"
    return ""
