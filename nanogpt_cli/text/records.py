"""Files of records, one document each: JSON lines, CSV, Parquet."""

from __future__ import annotations

import codecs
import csv as csv_module
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.foreign_files import parse_json
from nanogpt_cli.text.documents import Chunk, Reader, Tally, document
from nanogpt_cli.text.reading import CODEC_POLICY, Readable

_LONGEST_RECORD = 1 << 26  # bytes; several copies of it are in memory
_BLOCK = 1 << 18
_PARQUET_ROWS = 256  # at a time: with long documents these already take hundreds of kilobytes


def bounded_lines(stream: Readable, name: str) -> Iterator[bytes]:
    """The lines of a stream, with their ends.

    Raises:
        UserError: a line has more than 64 MiB.
    """
    parts: list[bytes] = []
    held, number = 0, 1
    while block := stream.read(_BLOCK):
        first, *others = block.split(b"\n")
        parts.append(first)
        held += len(first)
        if held > _LONGEST_RECORD:
            raise _too_long(name, number)
        if others:
            yield b"".join(parts) + b"\n"
            yield from (line + b"\n" for line in others[:-1])
            parts, held, number = [others[-1]], len(others[-1]), number + len(others)
    if held:
        yield b"".join(parts)


def _too_long(name: str, number: int) -> UserError:
    return UserError(
        f"{name}, line {number:,}: a record of more than {_LONGEST_RECORD:,} bytes",
        "check for an unclosed quote or a missing line end; plain text is read from .txt files",
    )


def jsonl(stream: Readable, name: str, reader: Reader, tally: Tally) -> Iterator[Chunk]:
    """One JSON object per line; blank lines are skipped.

    Raises:
        UserError: a line is not a JSON object or lacks the field; the message has file and line.
    """
    for number, line in enumerate(bounded_lines(stream, name), 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            text = _field(_parsed(line, name, number, reader), name, number, reader)
        except UserError:
            if reader.errors != "skip":
                raise
            tally.skipped_records += 1
            continue
        yield from document(text, name, number, reader, tally)


def _parsed(line: bytes, name: str, number: int, reader: Reader) -> dict[str, Any]:
    hint = "repair the line, or skip such lines with --errors skip"
    try:
        text = line.decode("utf-8", "replace" if reader.errors == "replace" else "strict")
        value = parse_json(text, lenient=True)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}, line {number:,}: invalid UTF-8 at byte {error.start + 1:,} of the line "
            f"(0x{line[error.start]:02x})",
            "use --errors replace or skip, or give the file's --encoding",
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{name}, line {number:,}, column {error.colno:,}: not JSON: {error.msg}", hint
        ) from error
    except ValueError as error:
        raise UserError(f"{name}, line {number:,}: {error}", hint) from error
    if not isinstance(value, dict):
        raise UserError(
            f"{name}, line {number:,}: a {type(value).__name__} where an object is needed",
            f'each line must look like {{"{reader.text_field}": "..."}}',
        )
    return value


def _field(record: dict[str, Any], name: str, number: int, reader: Reader) -> bytes:
    field = reader.text_field
    if field not in record:
        raise UserError(f"{name}, line {number:,}: no field {field!r}", _field_hint(field, record))
    text = record[field]
    if not isinstance(text, str):
        raise UserError(
            f"{name}, line {number:,}: field {field!r} is {type(text).__name__}, not text",
            "skip such records with --errors skip",
        )
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:  # "\ud800" is JSON, but no character
        if reader.errors == "strict":
            raise UserError(
                f"{name}, line {number:,}: field {field!r} holds half a surrogate pair "
                f"(\\u{ord(text[error.start]):04x}) at character {error.start + 1:,}",
                "use --errors replace or skip",
            ) from error
        return text.encode("utf-8", "replace" if reader.errors == "replace" else "ignore")


def _field_hint(field: str, known: Any) -> str:
    near = nearest(field, known)
    there = ", ".join(map(repr, list(known)[:8])) or "none"
    return f"fields here: {there}; choose one with --text-field" + (f" {near}" if near else "")


def csv(stream: Readable, name: str, tabs: bool, reader: Reader, tally: Tally) -> Iterator[Chunk]:
    """Records of a CSV (or tab-separated) file whose first line names the columns.

    Raises:
        UserError: the column is missing, a quote is not closed, or the text is not UTF-8.
    """
    csv_module.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # Strict decoding is applied to the wanted field only; see _cell.
    policy = "surrogateescape" if reader.errors == "strict" else CODEC_POLICY[reader.errors]
    held = 0  # bytes of the record that is being read: quotes may hold any number of lines

    def lines() -> Iterator[str]:
        nonlocal held
        for number, line in enumerate(bounded_lines(stream, name), 1):
            held += len(line)
            if held > _LONGEST_RECORD:
                raise _too_long(name, number)
            yield line.decode("utf-8", policy)

    rows = csv_module.reader(lines(), delimiter="\t" if tabs else ",", strict=True)
    try:
        header = next(rows, [])
        header = [column.removeprefix("\ufeff") for column in header]
        if reader.text_field not in header:
            raise UserError(
                f"{name}: no column {reader.text_field!r}", _field_hint(reader.text_field, header)
            )
        column = header.index(reader.text_field)
        for row in rows:
            held = 0
            if not row:
                continue
            text = _cell(row, column, len(header), name, rows.line_num, reader, tally)
            if text is not None:
                yield from document(text, name, rows.line_num, reader, tally)
    except csv_module.Error as error:
        raise UserError(f"{name}, line {rows.line_num:,}: not CSV: {error}") from error


def _cell(
    row: list[str], column: int, width: int, name: str, line: int, reader: Reader, tally: Tally
) -> bytes | None:
    if len(row) != width:
        if reader.errors == "skip":
            tally.skipped_records += 1
            return None
        raise UserError(
            f"{name}, line {line:,}: {len(row)} columns where the first line names {width}",
            "repair the line, or skip such records with --errors skip",
        )
    try:
        return row[column].encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(row[column][error.start]) - 0xDC00  # what surrogateescape made of it
        raise UserError(
            f"{name}, line {line:,}: invalid UTF-8 (0x{byte:02x})",
            "use --errors replace or skip, or give the file's --encoding",
        ) from error


def parquet(path: Path, name: str, reader: Reader, tally: Tally) -> Iterator[Chunk]:
    """Rows of a Parquet file; needs pyarrow (the extra ``formats``).

    Raises:
        UserError: pyarrow is missing, the file is damaged, or lacks the column.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{name}: reading .parquet needs the package pyarrow",
            "pip install 'nanogpt-cli[formats]'",
        ) from error
    field = reader.text_field
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise UserError(f"{name}: no column {field!r}", _field_hint(field, names))
            number = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=[field], use_threads=False):
                for text in batch.column(0).to_pylist():
                    number += 1
                    try:
                        data = _field({field: text}, name, number, reader)
                    except UserError:
                        if reader.errors != "skip":
                            raise
                        tally.skipped_records += 1
                        continue
                    yield from document(data, name, number, reader, tally)
    except (pyarrow.ArrowException, ValueError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} is a damaged Parquet file: {reason}", "fetch it again") from error
