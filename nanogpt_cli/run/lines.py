"""Single lines of an event log, found by how they begin, without decoding the others."""

from __future__ import annotations

import re
from typing import BinaryIO, Final

from nanogpt_cli.run import events

# Beginnings of lines as ``events.encode`` writes them.
STEP: Final = b'{"type":"step",'
START: Final = b'{"type":"run_started",'
ENDED: Final = b'{"type":"run_ended",'
# Rare kinds, by their first letters: eval, alarm, run_…, command, checkpoint. Within a JSON string
# the quotes would be escaped, so it is the beginning of a line; ``^`` would cost tenfold.
_RARE: Final = re.compile(rb'\{"type":"[earc][^\n]*')
_POINT: Final = re.compile(
    rb'\{"type":"step","time":[^,\n]{1,40},"step":(\d{1,15}),'
    rb'"loss":"?(-?[\d.]{1,30}(?:[eE][+-]?\d{1,3})?|NaN|-?Infinity)[",]'
)
# Signs of life that tell the time, and what the trainer does.
_SIGNS: Final = (b'{"type":"heartbeat",', b'{"type":"checkpoint",', STEP)


def read(file: BinaryIO, start: int, count: int) -> bytes:
    """Up to ``count`` bytes from ``start``."""
    file.seek(start)
    return file.read(max(0, count))


def ours(text: bytes) -> bool:
    """Whether the lines begin as ``events.encode`` writes them, or there are none."""
    return not text.strip() or b'{"type":"' in text


def rewritten(text: bytes) -> bytes:
    """Lines of another writer, such as one with spaces after colons, as ours would be."""
    found = (_decoded(line) for line in text.split(b"\n"))
    return b"".join(f"{events.encode(event)}\n".encode() for event in found if event is not None)


def rare(text: bytes) -> list[events.Event]:
    """The events of whole lines that are neither steps, statistics nor samples."""
    found = (_decoded(match.group()) for match in _RARE.finditer(text))
    return [event for event in found if event is not None]


def point_at(text: bytes, at: int) -> tuple[int, float] | None:
    """Number and loss of the step whose line begins at or after ``at``, without decoding it."""
    found = _POINT.search(text, at)
    return None if found is None else (int(found.group(1)), float(found.group(2)))


def last_steps(text: bytes, count: int) -> list[events.Step]:
    """The last ``count`` steps, newest first."""
    found: list[events.Step] = []
    end = len(text)
    while len(found) < count and (at := text.rfind(STEP, 0, end)) >= 0:
        step = _decoded(text[at:end].partition(b"\n")[0])
        if isinstance(step, events.Step):
            found.append(step)
        end = at
    return found


def last_sign(text: bytes) -> events.Event | None:
    """The last step, heartbeat or checkpoint."""
    at = max(text.rfind(sign) for sign in _SIGNS)
    end = text.find(b"\n", at)
    return _decoded(text[at:end]) if 0 <= at < end else None


def _decoded(line: bytes) -> events.Event | None:
    try:
        return events.decode(line)
    except ValueError:
        return None
