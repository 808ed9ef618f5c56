"""CSV files: one document a row. The separator, the quotes and escapes are recognised."""

from __future__ import annotations

import csv as csv_module
import io
import itertools
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from nanogpt_cli.errors import UserError
from nanogpt_cli.text.sources.decoding import Peekable
from nanogpt_cli.text.sources.documents import Chunk, Readable, Reader, Tally, document, option
from nanogpt_cli.text.sources.records import LONGEST_RECORD, bounded_lines, field_hint, utf8

_SAMPLE: Final = 1 << 17
_ROWS: Final = 2000  # of the sample, at most
_QUOTING: Final = (
    csv_module.QUOTE_MINIMAL,
    csv_module.QUOTE_ALL,
    csv_module.QUOTE_NONNUMERIC,
    csv_module.QUOTE_NONE,
)
_ENDS: Final = ("\r\n", "\n", "\r")
_NAMES: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_EXCEL: Final = re.compile(rb"sep=.\r?\n")  # Excel's line about the separator is no row
_REPAIR: Final = f"repair the row, or skip such rows with {option('errors', 'skip')}"


@dataclass(frozen=True)
class Dialect:
    """How a file marks its columns; see the module ``csv``."""

    delimiter: str = ","
    quotechar: str = '"'
    escapechar: str | None = None

    def options(self) -> dict[str, Any]:
        """The arguments of ``csv.reader`` and ``csv.writer``."""
        return {**asdict(self), "doublequote": self.escapechar is None}

    def rows(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """The rows in these lines; an invalid one raises ``csv.Error``, and the next can follow."""
        return csv_module.reader(lines, **self.options(), strict=True)


@dataclass(frozen=True)
class _Trial:
    """A sample read in one dialect.

    Attributes:
        fits: share of the rows that are valid and as wide as the first.
        exact: writing the rows in this dialect gives the sample again.
        marked: and this takes quotes or escapes.
        quoted: all rows are valid and equally wide, and cells stand in this dialect's quotes.
        length: characters of the cells: the fewer, the more of the sample is marks of the dialect.
    """

    dialect: Dialect
    fits: float
    exact: bool
    marked: bool
    quoted: bool
    length: int


def recognise(sample: str, field: str, *, tabs: bool, whole: bool) -> Dialect:
    """The dialect in which the sample makes most sense.

    Args:
        sample: the beginning of a file.
        field: the name of the wanted column, which the first row must have.
        tabs: whether the file's name says that tabs separate the columns.
        whole: whether the sample is the whole file; else its last row may be incomplete.
    """
    delimiters = sorted(_NAMES, key=lambda delimiter: (delimiter == "\t") != tabs)
    plain = [Dialect(delimiter, quote) for delimiter in delimiters for quote in "\"'"]
    headers = {dialect: _header(sample, dialect) for dialect in plain}
    usable = [dialect for dialect in plain if field in headers[dialect]]
    if not usable:  # the usual quotes, and the separator that gives the most columns
        common = [dialect for dialect in plain if dialect.quotechar == '"']
        return max(common, key=lambda dialect: len(headers[dialect]))
    usual = [_try(sample, dialect, whole) for dialect in usable if dialect.quotechar == '"']
    others = [_try(sample, dialect, whole) for dialect in usable if dialect.quotechar == "'"]
    if "\\" in sample and not any(trial.exact and trial.fits == 1 for trial in usual):
        others += [_try(sample, replace(d, escapechar="\\"), whole) for d in usable]
    escaped = '\\"' in sample  # without escapes hardly anyone writes this
    # In another dialect an invalid row may look valid: it must explain the whole sample.
    valid = any(trial.fits == 1 for trial in usual)
    trials = usual + [t for t in others if t.marked or (t.quoted and not valid) or not usual]
    return max(
        trials,
        key=lambda t: (t.fits, t.exact, (t.dialect.escapechar is None) != escaped, -t.length),
    ).dialect


def _header(sample: str, dialect: Dialect) -> list[str]:
    try:
        return next(dialect.rows(io.StringIO(sample, newline="")), [])
    except csv_module.Error:
        return []


def _try(sample: str, dialect: Dialect, whole: bool) -> _Trial:
    found = dialect.rows(io.StringIO(sample, newline=""))
    rows: list[list[str]] = []
    wrong = 0
    while len(rows) < _ROWS:
        try:
            rows.append(next(found))
        except StopIteration:
            break
        except csv_module.Error as error:
            wrong += whole or "end of data" not in str(error)
    if rows and not whole:
        rows.pop()
    rows = [row for row in rows if row]
    good = sum(len(row) == len(rows[0]) for row in rows)
    length = sum(len(cell) for row in rows for cell in row)
    written = "" if wrong else _written(dialect, rows, sample)
    # Cells, and a delimiter or an end after each.
    bare = length + sum(map(len, rows))
    fits = good / max(1, len(rows) + wrong)
    marked = len(written.replace("\r\n", "\n")) > bare
    return _Trial(
        dialect,
        fits,
        bool(written),
        marked,
        fits == 1 and _quotes(sample, dialect, rows),
        length,
    )


def _quotes(sample: str, dialect: Dialect, rows: list[list[str]]) -> bool:
    """Whether a sample has cells in the dialect's quotes, and none in the other ones.

    A person may quote as no program does: here a cell, and there none like it.
    """
    quote, other = dialect.quotechar, "\"'".replace(dialect.quotechar, "")
    mark = re.escape(dialect.delimiter)
    cell = rf"(?:^|{mark}){quote}(?:[^{quote}]|{quote}{quote})*{quote}(?:{mark}|\r?$)"
    wrapped = any(len(c) > 1 and c[0] == c[-1] == other for row in rows for c in row)
    return not wrapped and re.search(cell, sample, re.MULTILINE) is not None


def _written(dialect: Dialect, rows: list[list[str]], sample: str) -> str:
    """What Python's csv module writes for the rows if the sample begins so; else empty."""
    numbers = [[_Number(cell) if _is_number(cell) else cell for cell in row] for row in rows]
    for end, quoting in itertools.product(_ENDS, _QUOTING):
        if end not in sample:
            continue
        out = io.StringIO(newline="")
        writer = csv_module.writer(
            out,
            **dialect.options(),
            quoting=quoting,  # type: ignore[arg-type]
            lineterminator=end,
        )
        try:
            writer.writerows(numbers)
        except csv_module.Error:  # a cell cannot be written without quotes or escapes
            continue
        if sample.startswith(out.getvalue().removesuffix(end)):
            return out.getvalue()
    return ""


class _Number(str):
    """Digits that were not quoted, as the csv module takes any number to be."""

    def __float__(self) -> float:
        return 0.0


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class _Lines:
    """The lines of a file, with their ends; those of a bad row can be read again.

    Attributes:
        row: the lines of the row that is being read.
        number: of the last line read, from 1.
    """

    def __init__(self, stream: Readable, name: str) -> None:
        # Invalid bytes pass: only those of the wanted column matter.
        self._source = (
            part.decode("utf-8", "surrogateescape")
            for line in bounded_lines(stream, name)
            for part in line.splitlines(keepends=True)
        )
        self._again: deque[str] = deque()
        self._held = 0
        self.row: list[str] = []
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._source)
        self.number += 1
        self.row.append(line)
        self._held += len(line)
        if self._held > LONGEST_RECORD:  # quotes may hold any number of lines
            raise csv_module.Error(f"more than {LONGEST_RECORD:,} characters between quotes")
        return line

    def begin_row(self) -> None:
        """Forget the lines of the last row."""
        self.row, self._held = [], 0

    def place(self, name: str) -> tuple[int, str]:
        """The line on which the row began, as a number and in words."""
        first = self.number - len(self.row) + 1
        return first, f"{name}, line {first:,}"

    def retry(self) -> None:
        """Read the lines of a bad row again, except for the first: an open quote held the rest."""
        self._again.extendleft(reversed(self.row[1:]))
        self.number -= len(self.row) - 1


def csv(stream: Peekable, name: str, tabs: bool, reader: Reader, tally: Tally) -> Iterator[Chunk]:
    """Records of a CSV (or tab-separated) file whose first line names the columns.

    Raises:
        UserError: the column is missing, a row is not CSV, or the text is not UTF-8.
    """
    csv_module.field_size_limit(min(sys.maxsize, 2**31 - 1))
    head = stream.peek(_SAMPLE)
    whole = len(head) < _SAMPLE
    found = _EXCEL.match(head)
    skipped = stream.read(found.end() if found else 0)
    sample = head[len(skipped) :].decode("utf-8", "surrogateescape")
    dialect = recognise(sample, reader.text_field, tabs=tabs, whole=whole)
    _remark(dialect, Dialect("\t" if tabs else ","), name, tally)
    lines = _Lines(stream, name)
    lines.number = skipped.count(b"\n")
    rows = dialect.rows(lines)
    try:
        header = next(rows, [])
        if reader.text_field not in header:
            cells = dict(itertools.zip_longest(header, next(rows, [])[: len(header)], fillvalue=""))
            raise UserError(
                f"{name}: the first line names no column {reader.text_field!r}",
                field_hint(reader.text_field, cells),
            )
    except csv_module.Error as error:
        place = lines.place(name)[1]
        raise UserError(f"{place}: not CSV: {error}", "repair the line") from error
    column = header.index(reader.text_field)
    while True:
        lines.begin_row()
        try:
            if (row := next(rows, None)) is None:
                return
            if row:
                number, place = lines.place(name)
                data = _cell(row, column, len(header), place, reader, tally)
        except (csv_module.Error, UserError) as error:
            if isinstance(error, csv_module.Error):
                error = UserError(f"{lines.place(name)[1]}: not CSV: {error}", _REPAIR)
            tally.skip(error, reader)
            lines.retry()
        else:
            if row:
                yield from document(data, name, number, reader, tally)


def _remark(dialect: Dialect, usual: Dialect, name: str, tally: Tally) -> None:
    marks = []
    if dialect.delimiter != usual.delimiter:
        marks.append(f"{_NAMES[dialect.delimiter]} between the columns")
    if dialect.quotechar != usual.quotechar:
        marks.append("single quotes")
    if dialect.escapechar:
        marks.append("backslashes before quotes")
    if marks:
        tally.remark(f"read as CSV with {' and '.join(marks)}", name)


def _cell(
    row: list[str], column: int, width: int, place: str, reader: Reader, tally: Tally
) -> bytes:
    if len(row) != width:
        raise UserError(f"{place}: {len(row)} columns where the first line names {width}", _REPAIR)
    return utf8(row[column], place, reader, tally)
