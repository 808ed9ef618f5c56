"""Output of commands: results on stdout, commentary on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    redirect_stdout,
    suppress,
)
from functools import cache
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from nanogpt_cli import units
from nanogpt_cli.cli import guard
from nanogpt_cli.printable import json_escaped, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def coloured(stream: TextIO) -> bool:
    """Whether a stream is a terminal with colours and the user has not set NO_COLOR."""
    dumb = os.environ.get("TERM", "") in ("dumb", "unknown")
    return stream.isatty() and not dumb and not os.environ.get("NO_COLOR")


_LEAST_NAME = 12  # cells of a shortened name or path
_UNLIMITED = 10_000
# ``950``, ``12.3k``, ``124M``; ``8 s``, ``2:05``: as the dashboard writes them.
count, duration = units.si, units.duration
_STYLES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "magenta": 35, "cyan": 36}


def painted(text: str, style: str, stream: TextIO) -> str:
    """Make text printable, and style it if the stream takes colours. Write it with ``write``.

    It does without Rich, whose import would delay the first token by 0.1 s.

    Args:
        text: text from any origin.
        style: a key of ``_STYLES``; "" is plain.
        stream: the stream it will be written to.
    """
    text = printable(text)
    if not style or not text or not coloured(stream):
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def write(stream: TextIO, text: str) -> None:
    """Write and flush text that is painted or a result, bypassing the guard (see ``guard``)."""
    stream = guard.trusted(stream)
    stream.write(text)
    stream.flush()


@cache
def _kind() -> type[Console]:
    """A Rich console class that shows text literally, without markup or control codes."""
    from rich.console import Console
    from rich.segment import Segment

    class Literal(Console):
        @property
        def file(self) -> IO[str]:
            return guard.trusted(cast(TextIO, super().file))

        @file.setter
        def file(self, new_file: IO[str]) -> None:
            self._file = new_file

        def render_str(self, text: str, **options: Any) -> Text:  # before widths are measured
            return super().render_str(printable(text), **options)

        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            harmless = (s if s.control else Segment(printable(s.text), s.style) for s in buffer)
            return super()._render_buffer(harmless)

    return Literal


@cache
def stderr() -> Console:
    """The console for commentary."""
    return _kind()(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


@cache
def stdout() -> Console:
    """The console for what a command produces; ``styled`` gives it colours."""
    # Rich assumes 80 columns for every terminal that calls itself dumb.
    dumb = os.environ.get("TERM", "") in ("dumb", "unknown") and sys.stdout.isatty()
    width, height = shutil.get_terminal_size() if dumb else (None, None)
    return _kind()(highlight=False, width=width, height=height, markup=False, emoji=False)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Join strings, each plain or with a Rich style: ``styled(("run", "bold"), " ended")``."""
    from rich.text import Text

    pairs = (part if isinstance(part, tuple) else (part, "") for part in parts)
    return Text.assemble(*((printable(text), style) for text, style in pairs))


def say(message: str) -> None:
    """Write one line of commentary to stderr."""
    stderr().print(message)


def next_command(command: str) -> None:
    """Write the last line of a command's commentary: the command to type next."""
    write(sys.stderr, f"{painted('next:', 'dim', sys.stderr)} {printable(command)}\n")


def side_by_side(titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Print a table of two things' values, one key per line."""
    from rich import box
    from rich.table import Table

    table = Table("", *titles, box=box.SIMPLE_HEAD, pad_edge=False)
    for key, pair in rows.items():
        table.add_row(key, *pair)
    stdout().print(table)


def simple_table(title: str, columns: Sequence[str]) -> Table:
    """A table without vertical lines, whose columns are numbers except for the first."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def fitting(
    heads: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    numbers: Sequence[str] = (),
    spare: Sequence[str] = (),
    shorten: Sequence[str] = (),
    title: str = "",
) -> Table:
    """A table that fits the terminal without cutting a number.

    Args:
        heads: headings of the columns.
        rows: their cells.
        numbers: columns that are aligned to the right.
        spare: columns that may be left out, the first of them first.
        shorten: columns of names and paths, of which the middle is left out if need be.
        title: title of the table.
    """
    from rich.cells import cell_len

    columns = dict(zip(heads, zip(*rows, strict=True), strict=True))
    needed = {head: max(map(cell_len, [head, *map(str, cells)])) for head, cells in columns.items()}
    room = room_for_tables()

    def over() -> int:
        return 1 + sum(needed[head] + 2 for head in columns) - room

    def slack() -> int:
        return sum(max(0, needed[head] - _LEAST_NAME) for head in shorten if head in columns)

    for head in spare:
        if over() > slack():
            columns.pop(head, None)
    for head in sorted(shorten, key=lambda head: -needed[head]):
        if head in columns and over() > 0:
            needed[head] = max(min(needed[head], _LEAST_NAME), needed[head] - over())
            columns[head] = tuple(
                units.shortened(str(c), needed[head], cell_len) for c in columns[head]
            )
    table = simple_table(title, list(columns))
    for column, head in zip(table.columns, columns, strict=True):
        column.justify = "right" if head in numbers else "left"
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def room_for_tables() -> int:
    """Width of the terminal; without one nothing has to be left out."""
    fixed = stdout().is_terminal or "COLUMNS" in os.environ
    return stdout().width if fixed else _UNLIMITED


def print_table(table: Table) -> None:
    """Print a table, whole where there is no terminal."""
    out, room = stdout(), room_for_tables()
    if room > out.width:  # without a terminal Rich assumes 80 columns, and prints nothing wider
        out = _kind()(file=out.file, width=room, highlight=False, markup=False, emoji=False)
    out.print(table, crop=False)


def progress_bar(what: str) -> AbstractContextManager[Callable[[int, int], None] | None]:
    """A context that shows a progress bar if stderr is a terminal, and yields its callback."""
    if not stderr().is_terminal:
        return nullcontext()
    return _Bar(what)


class _Bar:
    """A transient Rich progress bar; entering it gives a ``progress(done, total)`` callback."""

    def __init__(self, what: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(40), TimeRemainingColumn())
        self.bar = Progress(*columns, console=stderr(), transient=True)
        self.what = what

    def __enter__(self) -> Callable[[int, int], None]:
        self.bar.start()
        task = self.bar.add_task(self.what, total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Send what other people's code writes to stdout to stderr: only our product goes there.

    This includes what their libraries and child processes write to the descriptor.
    """
    sys.stdout.flush()
    saved = None
    with suppress(OSError):  # no descriptor is open
        saved = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


def emit_json(value: Mapping[str, Any]) -> None:
    """Write one line of strict JSON to stdout."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    write(sys.stdout, json_escaped(text, sys.stdout.encoding) + "\n")


def _finite(value: Any) -> Any:
    """Replace NaN and infinities by strings, as in event logs."""
    from nanogpt_cli.run.events import plain

    return plain(value)
