"""Numbers by tag that another program has logged, over the steps at which it did."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt_cli import units
from nanogpt_cli.tui.state.series import Floats, thin

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


class _Rows:
    """Growing columns of one tag; arrays of Python take a single value far faster than NumPy's."""

    def __init__(self) -> None:
        self._columns = {"step": array("d"), "time": array("d"), "value": array("d")}

    def __len__(self) -> int:
        return len(self._columns["step"])

    def __getitem__(self, name: str) -> Floats:
        return np.array(self._columns[name])

    @property
    def last(self) -> float:
        """The latest step; -1 before there is one."""
        steps = self._columns["step"]
        return steps[-1] if steps else -1.0

    def append(self, *row: float) -> None:
        for column, number in zip(self._columns.values(), row, strict=True):
            column.append(number)

    def keep(self, index: NDArray[np.intp]) -> None:
        self._columns = {name: array("d", self[name][index]) for name in self._columns}


class Scalars:
    """The values of every tag; each has its own steps, which increase."""

    def __init__(self) -> None:
        self._found: dict[str, _Rows] = {}
        self._start: float | None = None

    def append(self, step: int, time: float, values: Mapping[str, Any]) -> None:
        """Add the values of a step at a time in seconds; what is no number is left out."""
        self._start = time if self._start is None else self._start
        for tag, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if (rows := self._found.get(tag)) is None:
                if len(self._found) >= MOST_TAGS:
                    continue
                rows = self._found[tag] = _Rows()
            if step > rows.last:
                rows.append(step, time - self._start, value)
            if len(rows) > MOST_ROWS:
                rows.keep(thin(rows, ("value",)))

    def resume(self, after: float) -> None:
        """Drop the values of steps beyond ``after``."""
        for rows in self._found.values():
            if rows.last > after:
                rows.keep(np.flatnonzero(rows["step"] <= after))

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
        return max((int(rows.last) for rows in self._found.values()), default=0)

    def _column(self, tag: str, name: str) -> Floats:
        rows = self._found.get(tag)
        return np.empty(0) if rows is None else rows[name]
