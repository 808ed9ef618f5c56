"""Parquet files: one document a row; needs pyarrow (the extra ``formats``)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanogpt_cli.errors import UserError, in_words
from nanogpt_cli.text.sources import fields
from nanogpt_cli.text.sources.documents import Chunk, Reader, Tally, document
from nanogpt_cli.text.sources.records import field_hint, text_of

if TYPE_CHECKING:
    import pyarrow

_ROWS: Final = 256  # at a time: with long documents these take hundreds of kilobytes
_SHOWN_ROWS: Final = 8  # by which a column is judged that is proposed to the user


def parquet(path: Path, name: str, reader: Reader, tally: Tally) -> Iterator[Chunk]:
    """The rows of a Parquet file.

    Raises:
        UserError: pyarrow is missing, the file is damaged, lacks the column, or has no text in it.
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
            _check_column(file, name, field)
            number = 0
            # The path of a field in a struct is its name here too, so that only this field is read.
            for batch in file.iter_batches(_ROWS, columns=[field], use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    try:
                        data = text_of(row, f"{name}, row {number:,}", reader, tally)
                    except UserError as error:
                        tally.skip(error, reader)
                        continue
                    yield from document(data, name, number, reader, tally)
    except (pyarrow.ArrowException, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{name} is a damaged Parquet file: {in_words(error)}", "fetch it again"
        ) from error


def _check_column(file: pyarrow.parquet.ParquetFile, name: str, field: str) -> None:
    """Refuse a column that is missing or cannot hold text, whatever the policy for records."""
    schema = file.schema_arrow
    kinds = {**dict(_columns(schema, "")), **{column.name: column.type for column in schema}}
    texts = {path: "" for path, kind in kinds.items() if _holds_text(kind)}
    if field in texts:
        return
    for batch in itertools.islice(file.iter_batches(_SHOWN_ROWS, use_threads=False), 1):
        for row in batch.to_pylist():
            texts |= {path: text for path, text in fields.texts(row).items() if path in texts}
    if field not in kinds:
        raise UserError(f"{name}: no column {field!r}", field_hint(field, texts))
    inside = {path: text for path, text in texts.items() if path.startswith(f"{field}.")}
    raise UserError(
        f"{name}: column {field!r} holds {kinds[field]!s:.80}, not text",
        field_hint(field, inside or texts),
    )


def _columns(parts: Any, above: str) -> Iterator[tuple[str, pyarrow.DataType]]:
    """The path and type of every column and of the fields of structs."""
    import pyarrow

    for part in parts:
        if pyarrow.types.is_struct(part.type):
            yield from _columns(part.type, f"{above}{part.name}.")
        yield above + part.name, part.type


def _holds_text(kind: pyarrow.DataType) -> bool:
    """Whether a column of this type can hold text: strings, nothing but nulls, or chats."""
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind):
        inner = kind.value_type
        names = {part.name for part in inner} if types.is_struct(inner) else set()
        return {"role", "content"} <= names or {"from", "value"} <= names
    strings = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(strings or types.is_null(kind))
