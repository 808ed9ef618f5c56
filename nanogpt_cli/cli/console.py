"""What commands say: the product on stdout, commentary on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def coloured(stream: TextIO) -> bool:
    """Whether bold and colours may be written there: a terminal that knows them, and no wish."""
    dumb = os.environ.get("TERM", "") in ("dumb", "unknown")
    return stream.isatty() and not dumb and not os.environ.get("NO_COLOR")


@cache
def stderr() -> Console:
    """The console for commentary; when its reader leaves, the work goes on in silence."""
    from rich.console import Console

    class Commentary(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    return Commentary(stderr=True, highlight=False, soft_wrap=True)


@cache
def stdout() -> Console:
    """The console for what a command produces."""
    from rich.console import Console

    # Rich takes every terminal that calls itself dumb for 80 columns wide.
    dumb = os.environ.get("TERM", "") in ("dumb", "unknown") and sys.stdout.isatty()
    width, height = shutil.get_terminal_size() if dumb else (None, None)
    return Console(highlight=False, width=width, height=height)


def say(message: str) -> None:
    """One line of commentary."""
    stderr().print(message, markup=False)


def next_command(command: str) -> None:
    """The last line of a command: what to type next."""
    word = "\x1b[2mnext:\x1b[0m" if coloured(sys.stderr) else "next:"
    try:
        sys.stderr.write(f"{word} {command}\n")
        sys.stderr.flush()
    except BrokenPipeError:  # its reader has left; the work is done all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def side_by_side(titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """A table on stdout of what two things say, a key a line."""
    from rich import box
    from rich.table import Table

    table = Table("", *titles, box=box.SIMPLE_HEAD, pad_edge=False)
    for key, pair in rows.items():
        table.add_row(key, *pair)
    stdout().print(table)


def emit_json(value: Mapping[str, Any]) -> None:
    """The machine's answer: one line of strict JSON on stdout."""
    sys.stdout.write(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    """NaN and infinities as strings, as in event logs."""
    from nanogpt_cli.events import plain

    return plain(value)


def duration(seconds: float) -> str:
    """``8 s``, ``2:05``, ``1:02:03`` or ``3 d 5 h``."""
    whole = round(seconds)
    if whole >= 48 * 3600:
        days, hours = divmod(round(whole / 3600), 24)
        return f"{days} d {hours} h"
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def count(number: float) -> str:
    """``950``, ``12.3k``, ``124M``."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes for people: ``950 B``, ``12.3 MB``, ``1.24 GB``."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.0f} B"
