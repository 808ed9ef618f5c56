"""Which events of a run are news for a person who is not looking, and how a terminal tells them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from typing import Any

from nanogpt_cli.printable import printable
from nanogpt_cli.run import events

BELLS = ("off", "bell", "osc9")
# An alarm of one kind is news once in so many seconds, and so many alarms are in the same time.
AGAIN_S, MOST = 1800.0, 5
_LONGEST = 300  # characters
_ENDINGS = {"early_stop": "stopped early", "non_finite": "given up", "error": "failed"}


class News:
    """Called with each event of a run, it answers with one line, or "" where there is no news.

    News are the end of the run, incidents, and alarms when they are raised. A storm of alarms is
    no storm of news: see ``AGAIN_S`` and ``MOST``. Time is that of the events.
    """

    def __init__(self, name: str) -> None:
        self._name = printable(name, keep="")
        self._told: dict[str, float] = {}
        self._recent: deque[float] = deque(maxlen=MOST)

    def __call__(self, event: events.Event) -> str:
        """The news in an event."""
        match event:
            case events.RunEnded():
                text = _ending(event)
            case events.Alarm() if event.active and event.severity != "info":
                text = f"step {event.step}: {event.severity}: {event.message}"
            case events.Incident():
                text = f"step {event.step}: {event.message}"
            case _:
                return ""
        if not isinstance(event, events.RunEnded):
            kind = event.kind
            if not self._is_due(kind, event.time):
                return ""
            if len(self._recent) == MOST:
                text += " (further alarms of this half hour stand in the log only)"
        return f"{self._name}: {_one_line(text)}"

    def _is_due(self, kind: str, now: float) -> bool:
        """Whether a kind of alarm is news at this time; if so, it counts as told."""
        while self._recent and not 0 <= now - self._recent[0] < AGAIN_S:
            self._recent.popleft()
        if 0 <= now - self._told.get(kind, -AGAIN_S) < AGAIN_S or len(self._recent) == MOST:
            return False
        self._told[kind] = now
        self._recent.append(now)
        return True


def _ending(event: events.RunEnded) -> str:
    word = _ENDINGS.get(event.reason, event.reason)
    best = f", best val loss {event.best_val_loss:.4f}" if event.best_val_loss else ""
    # Of a traceback, the last line says what happened.
    why = next(filter(None, (line.strip() for line in event.message.splitlines()[::-1])), "")
    steps = f"{event.step} step{'s' * (event.step != 1)}"
    return f"{word} after {steps}{best}" + (f": {why}" if why else "")


def _one_line(text: str) -> str:
    text = printable(" ".join(text.split()), keep="")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def bell_of(recipe: Mapping[str, Any]) -> str:
    """What the recipe in a log asks of the terminal; "off" for anything unknown."""
    section = recipe.get("log")
    found = section.get("bell") if isinstance(section, Mapping) else None
    return found if isinstance(found, str) and found in BELLS else "off"


def sequence(bell: str, text: str) -> str:
    """What to write to a terminal: BEL, or OSC 9, which shows the text as a desktop notification.

    Args:
        bell: one of ``BELLS``.
        text: news; other text could end the sequence.
    """
    if bell == "bell":
        return "\a"
    if bell != "osc9":
        return ""
    osc = f"\x1b]9;nanogpt: {text}\a"
    # tmux keeps the sequence to itself unless it is wrapped (and allow-passthrough is on).
    return f"\x1bPtmux;\x1b{osc}\x1b\\" if os.environ.get("TMUX") else osc
