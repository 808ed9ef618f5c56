"""Numbers by tag that another program has logged, over the steps at which it did."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from nanogpt_cli import units
from nanogpt_cli.tui.series import Columns, Floats, thin

MOST_TAGS, MOST_ROWS = 10_000, 200_000
_PREFIX = "scalars/"  # begins the name of a tag where one of our metrics has the same


def names(tags: Iterable[str], ours: Collection[str]) -> list[str]:
    """What tags are called among our own metrics, in natural order."""
    found = (_PREFIX * (tag in ours) + tag for tag in tags)
    return sorted(found, key=units.natural)


def tag_of(name: str, tags: Collection[str], ours: Collection[str]) -> str:
    """The tag that a name stands for; "" for none of them."""
    if name in tags and name not in ours:
        return name
    return tag if (tag := name.removeprefix(_PREFIX)) != name and tag in tags else ""


class Scalars:
    """The values of every tag; each has its own steps, which increase."""

    def __init__(self) -> None:
        self._found: dict[str, Columns] = {}
        self._start: float | None = None

    def append(self, step: int, time: float, values: Mapping[str, Any]) -> None:
        """Add the values of a step at a time in seconds; what is no number is left out."""
        self._start = time if self._start is None else self._start
        for tag, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if tag not in self._found and len(self._found) >= MOST_TAGS:
                continue
            rows = self._found.setdefault(tag, Columns(step="f8", time="f8", value="f8"))
            if len(rows) and step <= rows["step"][-1]:
                continue
            row = {"step": step, "time": time - self._start, "value": value}
            rows.extend({name: np.array([float(number)]) for name, number in row.items()})
            if len(rows) > MOST_ROWS:
                rows.keep(thin(rows, ("value",)))

    def resume(self, after: float) -> None:
        """Drop the values of steps beyond ``after``."""
        for rows in self._found.values():
            rows.truncate(int(np.searchsorted(rows["step"], after, side="right")))

    def tags(self) -> list[str]:
        """Every tag that has a value, in order of the alphabet."""
        return sorted(tag for tag, rows in self._found.items() if len(rows))

    def values(self, tag: str) -> Floats:
        """The values of a tag; empty for one that is not there."""
        return self._column(tag, "value")

    def steps(self, tag: str) -> Floats:
        """The steps at which a tag was logged."""
        return self._column(tag, "step")

    def times(self, tag: str) -> Floats:
        """Seconds since the first value of any tag."""
        return self._column(tag, "time")

    def last_step(self) -> int:
        """The latest step of any tag; 0 where there is none."""
        ends = [int(rows["step"][-1]) for rows in self._found.values() if len(rows)]
        return max(ends, default=0)

    def _column(self, tag: str, name: str) -> Floats:
        rows = self._found.get(tag)
        return np.empty(0) if rows is None else rows[name]
