"""Blocks of ``step`` lines as columns, parsed with NumPy instead of line by line.

``events.decode`` is the reference implementation; this is a fast one for the form in which
``events.encode`` writes a step. A block in any other form is refused, never misread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from nanogpt_cli.run import events
from nanogpt_cli.run.events import Step
from nanogpt_cli.tui.state.history import OPTIONAL, UNKNOWN
from nanogpt_cli.tui.state.series import Floats

COLUMNS = ("time", "step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "step_s")
_FLAGS = ("clipped", "skipped")
_KEYS = [f'"{name}"'.encode() for name in ("type", *(item.name for item in fields(Step)))]
_SHORT = 8192  # blocks of up to this many bytes are parsed faster line by line
_MOST_DIGITS = 22  # 0.00012345678901234567 has 21
_POWERS = 10.0 ** np.arange(_MOST_DIGITS + 100)
_NON_FINITE = {b'"NaN"': math.nan, b'"Infinity"': math.inf, b'"-Infinity"': -math.inf}
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Table:
    """Consecutive steps as columns, and the last of them as an event."""

    columns: dict[str, Floats]
    last: Step


@dataclass
class Parsed:
    """A batch of a log, ready to be folded: events, and tables for steps; invalid lines counted."""

    items: list[events.Event | Table] = field(default_factory=list)
    bad_lines: int = 0


def parsed(batch: Iterable[events.Event | bytes]) -> Parsed:
    """Put consecutive steps of a batch into tables; they may be text (``read_blocks``).

    This is the expensive part of reading, and it knows no view, so that any thread can do it.
    """
    found, steps = Parsed(), list[Step]()

    def end_of_steps() -> None:
        if steps:
            found.items.append(Table(from_events(steps), steps[-1]))
            steps.clear()

    def take(event: events.Event) -> None:
        if not isinstance(event, Step):
            end_of_steps()
            found.items.append(event)
        elif events.sound(event):
            steps.append(event)
        else:
            found.bad_lines += 1

    for item in batch:
        if not isinstance(item, bytes):
            take(item)
        elif (table := _table(item)) is not None:
            end_of_steps()
            found.items.append(table)
        else:
            for line in item.splitlines():
                try:
                    event = events.decode(line)
                except ValueError:
                    found.bad_lines += 1
                    continue
                if event is not None:
                    take(event)
    end_of_steps()
    return found


def _table(block: bytes) -> Table | None:
    """The table of a block in the usual form whose last line is valid."""
    columns = parse(block) if len(block) > _SHORT else None
    if columns is None:
        return None
    try:
        last = events.decode(block[block.rfind(b"\n", 0, -1) + 1 :])
    except ValueError:
        return None
    return Table(columns, last) if isinstance(last, Step) else None


def from_events(steps: Sequence[Step]) -> dict[str, Floats]:
    """The columns of decoded events."""
    return {
        name: np.array([_known(getattr(step, name)) for step in steps], np.float64)
        for name in (*COLUMNS, *_FLAGS)
    }


def _known(value: float | None) -> float:
    return UNKNOWN if value is None else value


def parse(block: bytes) -> dict[str, Floats] | None:
    """The columns of ``block`` (whole lines of step events), or ``None`` if its form is unusual.

    Decimals come out within 3 units in the last place of ``float(text)``.
    """
    text = np.frombuffer(block, np.uint8)
    lines = int(np.count_nonzero(text == ord("\n")))
    colons = np.flatnonzero(text == ord(":")).astype(np.int32)
    ends: Ints = np.flatnonzero((text == ord(",")) | (text == ord("}"))).astype(np.int32)
    if lines == 0 or len(colons) != lines * len(_KEYS) or len(ends) != len(colons):
        return None
    starts: Ints = colons.reshape(lines, -1) + np.int32(1)
    ends = ends.reshape(lines, -1)
    if not _keys_match(text, starts, ends) or not block.endswith(b"}\n"):
        return None
    points = np.flatnonzero(text == ord(".")).astype(np.int32)
    optional = _NON_FINITE | {b"null": UNKNOWN}
    try:
        numbers = {
            name: _numbers(
                block,
                text,
                starts[:, _place(name)],
                ends[:, _place(name)],
                points,
                optional if name in OPTIONAL else _NON_FINITE,
            )
            for name in COLUMNS
        }
    except ValueError:
        return None
    flags = {name: (text[starts[:, _place(name)]] == ord("t")) * 1.0 for name in _FLAGS}
    return {**numbers, **flags}


def _place(name: str) -> int:
    return _KEYS.index(f'"{name}"'.encode())


def _keys_match(text: NDArray[np.uint8], starts: Ints, ends: Ints) -> bool:
    """Whether every line is ``{"key":value,...}`` with exactly the keys that ``encode`` writes."""
    for at, key in enumerate(_KEYS):
        window = starts[:, at] - 1 - len(key)
        before = np.zeros(len(window), np.int32) if at == 0 else ends[:, at - 1] + 1
        if at == 0:
            before[1:] = ends[:-1, -1] + 2
            before += 1
        if not np.array_equal(window, before) or (ends[:, at] <= starts[:, at]).any():
            return False
        for offset, char in enumerate(key):
            if (text[window + offset] != char).any():
                return False
    return True


def _numbers(
    block: bytes,
    text: NDArray[np.uint8],
    starts: Ints,
    ends: Ints,
    points: Ints,
    words: Mapping[bytes, float],
) -> Floats:
    """Parse JSON numbers at ``block[starts:ends]``: plain decimals at once, others one by one.

    ``words`` are values that are no JSON numbers.
    """
    # A float's repr has an exponent of a sign and two digits, rarely three.
    has_e = (text[ends - 4] == ord("e")) & (ends - 4 > starts)
    exponent = np.zeros(len(starts), np.int32)
    if has_e.any():
        tens, ones = text[ends - 2].astype(np.int32), text[ends - 1].astype(np.int32)
        found = (tens - ord("0")) * 10 + ones - ord("0")
        exponent = np.where(has_e, np.where(text[ends - 3] == ord("-"), -found, found), 0)
    numerals, ends = ends, np.where(has_e, ends - 4, ends).astype(np.int32)
    index = np.searchsorted(points, starts)
    point = np.append(points, np.int32(len(text)))[index].astype(np.int32)
    has_point = point < ends
    width = np.where(has_point, ends - starts - 1, ends - starts)
    whole = np.where(has_point, point - starts, width)
    most = min(int(width.max(initial=1)), _MOST_DIGITS)
    column = np.arange(most, dtype=np.int32)[:, None]
    at = starts + column + (column >= whole)
    digits = np.take(text, at, mode="clip") - np.uint8(ord("0"))
    inside = column < width
    odd = (((digits > 9) & inside).any(0)) | (width > _MOST_DIGITS) | (width <= 0)
    odd |= np.abs(exponent) > 99
    digits *= inside
    high, low = digits[: max(0, most - 9)], digits[max(0, most - 9) :]
    values = _join(low) + _join(high) * 1e9  # both halves are exact
    values = _scaled(values, whole - most + exponent)
    for row in np.flatnonzero(odd).tolist():
        values[row] = words.get(word := block[starts[row] : numerals[row]]) or float(word)
    return values


def _join(digits: NDArray[np.uint8]) -> Floats:
    """Rows of digits, most significant first, as numbers."""
    weights = 10.0 ** np.arange(len(digits) - 1, -1, -1)
    total = np.zeros(digits.shape[1])
    for weight, row in zip(weights, digits, strict=True):
        total += weight * row
    return total


def _scaled(mantissa: Floats, scale: Ints) -> Floats:
    """``mantissa * 10**scale``; dividing by an exact power keeps the last place right."""
    power = _POWERS[np.minimum(np.abs(scale), len(_POWERS) - 1)]
    return np.where(scale < 0, mantissa / power, mantissa * power)
