"""The visible part of the x axis, shared by all charts, so that they move together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanogpt_cli.tui.state.history import AXES


@dataclass
class Window:
    """The visible range of the x axis; ``None`` bounds show everything."""

    axis: str = "step"
    log: bool = False
    low: float | None = None
    high: float | None = None
    follow: bool = True
    cursor: float | None = None
    axes: tuple[str, ...] = AXES

    def range(self, full: tuple[float, float]) -> tuple[float, float]:
        """The visible bounds, given those of the data; a followed tail stays visible."""
        if self.low is None or self.high is None:
            return full
        if self.follow and full[1] > self.high:
            self._shift_to(full)
        return self.low, self.high

    def _shift_to(self, full: tuple[float, float]) -> None:
        assert self.low is not None
        assert self.high is not None
        low, high = self._inner(self.low), self._inner(self.high)
        move = self._inner(full[1]) - high
        self.low, self.high = self._outer(low + move), self._outer(high + move)

    def zoom(self, factor: float, full: tuple[float, float], at: float | None = None) -> None:
        """Show ``1 / factor`` of the current range around a place.

        It is ``at``, else the crosshair, a tail that is followed, or the middle.
        """
        low, high = (self._inner(value) for value in self.range(full))
        if at is not None:
            anchor = self._inner(at)
            self.follow = False
        elif self.cursor is not None and low <= self._inner(self.cursor) <= high:
            anchor = self._inner(self.cursor)
        elif self.follow and self._inner(full[1]) <= high * (1 + 1e-9):
            anchor = high
        else:
            anchor = (low + high) / 2
        new_low, new_high = anchor - (anchor - low) / factor, anchor + (high - anchor) / factor
        if factor < 1 and new_low <= self._inner(full[0]) and new_high >= self._inner(full[1]):
            self.fit()
            return
        if new_high - new_low < 1e-6 * max(abs(new_high), 1e-6):
            return
        self._place(new_low, new_high, full)

    def pan(self, share: float, full: tuple[float, float]) -> None:
        """Move by ``share`` of the visible width, but not beyond the data."""
        low, high = (self._inner(value) for value in self.range(full))
        move = share * (high - low)
        self.follow = False
        self._place(low + move, high + move, full)

    def to_end(self, full: tuple[float, float]) -> None:
        """Move to the newest values and follow them."""
        low, high = (self._inner(value) for value in self.range(full))
        last = self._inner(full[1])
        self.follow = True
        self._place(last - (high - low), last, full)

    def _place(self, low: float, high: float, full: tuple[float, float]) -> None:
        """Show what lies between positions on the axis, moved to where there are data."""
        first, last = self._inner(full[0]), self._inner(full[1])
        if high - low >= last - first:
            self.fit()
            return
        move = max(first - low, 0.0) or min(last - high, 0.0)
        self.low, self.high = self._outer(low + move), self._outer(high + move)

    def show(self, low: float, high: float) -> None:
        """Show exactly this range."""
        self.low, self.high, self.follow = low, high, False

    def fit(self) -> None:
        """Show everything and follow."""
        self.low = self.high = None
        self.follow = True

    def next_axis(self) -> None:
        """Switch to the next quantity on the x axis and reset range and crosshair."""
        self.axis = self.axes[(self.axes.index(self.axis) + 1) % len(self.axes)]
        self.cursor = None
        self.fit()

    def move_cursor(self, cells: int, width: int, full: tuple[float, float]) -> None:
        """Move the crosshair by cells of a chart ``width`` cells wide, pushing the window along."""
        low, high = (self._inner(value) for value in self.range(full))
        here = high if self.cursor is None else self._inner(self.cursor)
        here += cells * (high - low) / max(1, width)
        here = min(max(here, self._inner(full[0])), self._inner(full[1]))
        self.cursor = self._outer(here)
        if self.low is not None and not low <= here <= high:
            self.pan((here - (high if here > high else low)) / (high - low), full)

    def _inner(self, value: float) -> float:
        return math.log10(max(value, 1e-3)) if self.log else value

    def _outer(self, value: float) -> float:
        return float(10.0**value) if self.log else value
