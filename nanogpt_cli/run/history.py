"""The effective history of a run: steps that were repeated after a resume count once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nanogpt_cli.run import events
from nanogpt_cli.run.follow import EventReader

# Bytes at the end of a log in which the newest events are looked for.
_TAIL = 1 << 23


def effective(log: Iterable[events.Event]) -> list[events.Event]:
    """The valid events, in order.

    When a run is resumed after step ``s``, the events of later steps are void: those steps are
    repeated. An evaluation or a sample of step ``s`` itself may be in the log twice, with the same
    result; the first one is kept.
    """
    found: list[events.Event] = []
    seen: set[tuple[str, int]] = set()
    for event in log:
        if isinstance(event, events.RunStarted):
            found = [old for old in found if getattr(old, "step", 0) <= event.step]
            seen = {key for key in seen if key[1] <= event.step}
        elif isinstance(event, events.Eval | events.Sample):
            key = (event.type, event.step)
            if key in seen:
                continue
            seen.add(key)
        found.append(event)
    return found


def active_alarms(alarms: Iterable[events.Alarm]) -> list[events.Alarm]:
    """Alarms that were raised and not cleared since, newest last; those for information aside."""
    latest: dict[tuple[str, int | None], events.Alarm] = {}
    for alarm in alarms:
        key = (alarm.kind, alarm.layer)
        latest.pop(key, None)
        latest[key] = alarm
    return [alarm for alarm in latest.values() if alarm.active and alarm.severity != "info"]


def newest(log: Path, count: int, *, step: int) -> list[events.Event]:
    """The last ``count`` valid events of a log whose run is resumed after ``step``."""
    try:
        size = log.stat().st_size
    except OSError:
        return []
    reader = EventReader(log, offset=max(0, size - _TAIL))
    return effective([*reader.read_all(), events.RunStarted(name="", step=step)])[:-1][-count:]
