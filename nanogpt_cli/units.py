"""Short, readable forms of numbers, the same in commands and in the dashboard."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from nanogpt_cli.user_input import whole

_SI = ("", "k", "M", "G", "T", "P", "E", "Z")


def si(value: float, digits: int = 3) -> str:
    """``1234567`` as ``1.23M``: ``digits`` significant digits and an SI suffix."""
    if not math.isfinite(value):
        return number(value)
    if value == 0:
        return "0"
    if abs(value) >= 1e24:
        return f"{value:.{digits - 1}e}".replace("e+", "e")
    power = max(0, min(len(_SI) - 1, math.floor(math.log10(abs(value)) / 3 + 1e-12)))
    scaled = value / 1000**power
    if abs(float(f"{scaled:.{digits}g}")) >= 1000 and power + 1 < len(_SI):
        power += 1
        scaled = value / 1000**power
    text = f"{scaled:.{digits}g}"
    if "e" in text:
        text = f"{scaled:.0f}" if abs(scaled) >= 1 else text
    return text + _SI[power]


def number(value: float | None, digits: int = 4) -> str:
    """A measured value in at most about 8 characters; NaN and infinities by name."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10**digits:
        return si(value)
    if size < 1e-3:
        return f"{value:.{digits - 2}e}".replace("e-0", "e-")
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"[: digits + 3]


def loss(value: float | None) -> str:
    """A loss with four decimals; one beyond all measure in short."""
    if value is None or not math.isfinite(value) or abs(value) >= 1e4:
        return number(value)
    return f"{value:.4f}"


def percent(share: float | None) -> str:
    """A share between 0 and 1 as a percentage."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{share * 100:.1f}%" if 0 < abs(share) < 0.0995 else f"{share * 100:.0f}%"


def duration(seconds: float | None) -> str:
    """``8 s``, ``12:44``, ``3:07:00``, ``2 d 4 h``."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole >= 86400:
        days, hours = divmod(round(whole / 3600), 24)
        return f"{days} d {hours} h"
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"


def short_time(seconds: float) -> str:
    """An axis label: ``90s``, ``12m``, ``3h``, ``2d``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if abs(seconds) >= 2 * size or seconds == size:
            return f"{seconds / size:.3g}{unit}"
    return f"{seconds:.3g}s"


def size(count: float) -> str:
    """Bytes, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def decimal_size(count: float) -> str:
    """Bytes as ``950 B``, ``12.3 MB`` or ``1.24 GB``, as makers of memory and disks count."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}" if count < 1e15 else f"{count / limit:,.0f} {unit}"
    return f"{count:.0f} B"


def shortened(text: str, room: int, size: Callable[[str], int] = len) -> str:
    """At most ``room`` wide: both ends of a name or path tell more than its middle.

    ``size`` tells how wide a text is: characters, or the cells that it takes in a terminal.
    """
    if size(text) <= room:
        return text
    if room < 2:
        return _end(text, room, size, 1)
    head = _end(text, (room - 1) // 2, size, 1)
    return f"{head}…{_end(text, room - 1 - size(head), size, -1)}"


def _end(text: str, room: int, size: Callable[[str], int], step: int) -> str:
    """As much of a text's beginning (1) or end (-1) as fits."""
    found = ""
    for character in text[::step]:
        longer = found + character if step > 0 else character + found
        if size(longer) > room:
            break
        found = longer
    return found


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key under which ``h.2`` comes before ``h.10``."""
    parts = [(part, whole(part)) for part in re.split(r"([0-9]+)", text) if part]
    return [(1, 0, part) if number is None else (0, number, "") for part, number in parts]


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: ``1 layer``, ``2 layers``; without ``many`` the plural has an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"
