"""What lets the dashboard answer keys at once: interpreter, garbage, and what a focus repaints."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

from textual.reactive import Reactive, var
from textual.screen import Screen
from textual.widget import Widget

SWITCH = 0.001  # seconds after which the reader hands over the interpreter to whoever draws
FULL = 100  # collections of the middle generation, instead of 10, for one of everything


class OneScreen(Screen[None]):
    """A screen that a change of the focus does not repaint, but for the panes that it concerns."""

    focused: Reactive[Widget | None] = var(None)


@contextlib.contextmanager
def swift() -> Iterator[None]:
    """While a dashboard runs, hand the interpreter over soon and collect garbage in little time.

    Python's collector goes through all objects that live long, 50 to 80 ms at each eighth key or so
    with all of the libraries. Those that are there already are left out, and once more those that
    are there after the first picture (see ``settled``).
    """
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(SWITCH)
    gc.set_threshold(*thresholds[:2], FULL)
    settled()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def settled() -> None:
    """Note that all objects there are will live as long as the dashboard."""
    gc.freeze()
