"""Files of records in JSON, one document each: lines, arrays, and files that are one record."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.parsing import parse_first, parse_json
from nanogpt_cli.text.sources import fields
from nanogpt_cli.text.sources.decoding import Peekable, decode
from nanogpt_cli.text.sources.documents import (
    OTHER_ENCODING,
    Chunk,
    Readable,
    Reader,
    Tally,
    document,
    option,
)

LONGEST_RECORD: Final = 1 << 26  # bytes; several copies of it are in memory
BLOCK: Final = 1 << 18
_SKIP: Final = f"skip such records with {option('errors', 'skip')}"
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_LONGEST_FIELD: Final = 80  # characters of a name that a hint repeats


def too_long(name: str, number: int) -> UserError:
    """The error for a record of more than 64 MiB."""
    return UserError(
        f"{name}, line {number:,}: a record of more than {LONGEST_RECORD:,} bytes",
        "check for an unclosed quote or a missing line end; plain text is read from .txt files",
    )


def bounded_lines(stream: Readable, name: str) -> Iterator[bytes]:
    """The lines of a stream, with their ends.

    Raises:
        UserError: a line has more than 64 MiB.
    """
    parts: list[bytes] = []
    held, number = 0, 1
    while block := stream.read(BLOCK):
        first, *others = block.split(b"\n")
        parts.append(first)
        held += len(first)
        if held > LONGEST_RECORD:
            raise too_long(name, number)
        if others:
            yield b"".join(parts) + b"\n"
            yield from (line + b"\n" for line in others[:-1])
            parts, held, number = [others[-1]], len(others[-1]), number + len(others)
    if held:
        yield b"".join(parts)


def jsonl(stream: Readable, name: str, reader: Reader, tally: Tally) -> Iterator[Chunk]:
    """One JSON object or string per line; blank lines are skipped.

    Raises:
        UserError: a line is neither, or lacks the field; the message has file and line.
    """
    for number, line in enumerate(bounded_lines(stream, name), 1):
        if not line.strip():
            continue
        place = f"{name}, line {number:,}"
        try:
            text = text_of(_parsed(line, place, reader, tally), place, reader, tally)
        except UserError as error:
            tally.skip(error, reader)
            continue
        yield from document(text, name, number, reader, tally)


def _parsed(line: bytes, place: str, reader: Reader, tally: Tally) -> Any:
    strict = reader.errors != "replace"
    try:
        text = line.decode("utf-8") if strict else decode(line, reader, tally)
        return parse_json(text, lenient=True)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: invalid UTF-8 at byte {error.start + 1:,} of the line "
            f"(0x{line[error.start]:02x})",
            OTHER_ENCODING,
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{place}, column {error.colno:,}: not JSON: {error.msg}", f"repair it, or {_SKIP}"
        ) from error
    except ValueError as error:
        raise UserError(f"{place}: {error}", f"repair it, or {_SKIP}") from error


def json_layout(stream: Peekable, field: str) -> str:
    """How a ``.json`` file holds records: ``array``, ``lines``, ``object`` (one), ``text`` (none).

    Args:
        stream: the file; it can still be read from its beginning.
        field: the field of a record that holds the text.
    """
    size = BLOCK
    while b"\n" not in (head := stream.peek(size)).lstrip() and size <= len(head) < LONGEST_RECORD:
        size *= 2
    text = head.decode("utf-8", "replace").lstrip(" \t\r\n")
    if text.startswith("["):
        return "array" if text[1:].lstrip(" \t\r\n").startswith(("{", '"')) else "text"
    first, _, others = text.partition("\n")
    try:
        value = parse_json(first, lenient=True)
    except ValueError:
        return "object" if text.startswith("{") and _is_record(stream, field) else "text"
    one_record = isinstance(value, dict) and (others.strip() or fields.has(value, field))
    return "lines" if one_record or (isinstance(value, str) and others.strip()) else "text"


def looks_like_lines(stream: Peekable) -> bool:
    """Whether the first two lines of a text are JSON objects; it can be read from its beginning."""
    lines = stream.peek(BLOCK).split(b"\n", 2)[:2]
    if not lines[0].startswith(b"{"):
        return False
    try:
        values = [parse_json(line.decode(), lenient=True) for line in lines]
    except ValueError:
        return False
    return len(lines) == 2 and all(isinstance(value, dict) for value in values)


def _is_record(stream: Peekable, field: str) -> bool:
    """Whether a file is one object, spread over lines, that has the field."""
    data = stream.peek(LONGEST_RECORD)
    if len(data) == LONGEST_RECORD:
        return False
    try:
        value = parse_json(data.decode("utf-8", "replace"), lenient=True)
    except ValueError:
        return False
    return isinstance(value, dict) and fields.has(value, field)


def json_object(stream: Readable, name: str, reader: Reader, tally: Tally) -> Iterator[Chunk]:
    """A file that is one object; see ``json_layout``.

    Raises:
        UserError: the field holds no text.
    """
    data = stream.read(LONGEST_RECORD)
    try:
        text = text_of(_parsed(data, name, reader, tally), name, reader, tally)
    except UserError as error:
        tally.skip(error, reader)
        return
    yield from document(text, name, 1, reader, tally)


def json_array(stream: Readable, name: str, reader: Reader, tally: Tally) -> Iterator[Chunk]:
    """An array of JSON objects or strings.

    Raises:
        UserError: it is not valid JSON, or an element is neither or lacks the field; the message
            has file and line.
    """
    for value, number in _elements(stream, name):
        place = f"{name}, line {number:,}"
        try:
            text = text_of(value, place, reader, tally)
        except UserError as error:
            tally.skip(error, reader)
            continue
        yield from document(text, name, number, reader, tally)


def _elements(stream: Readable, name: str) -> Iterator[tuple[Any, int]]:
    """The elements of an array with their lines, parsed as they are read."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # ``utf8`` judges the text
    buffer, line, size, mark = "", 1, BLOCK, "["
    while True:
        block = stream.read(size)
        buffer += decoder.decode(block, final=not block)
        start = 0
        try:
            while buffer[at := _after_space(buffer, start)] != "]" or mark == "[":
                if buffer[at] != mark:
                    raise json.JSONDecodeError(f"'{mark}' is missing", buffer, at)
                at = _after_space(buffer, at + 1)
                if buffer[at] == "]" and mark == "[":
                    return
                value, end = parse_first(buffer, at)
                line += buffer.count("\n", start, at)
                yield value, line
                line += buffer.count("\n", at, end)
                start, mark = end, ","
            return
        except (IndexError, json.JSONDecodeError) as error:
            if not block:
                row = line + buffer.count("\n", start, getattr(error, "pos", len(buffer)))
                reason = getattr(error, "msg", "it ends in the middle of an array")
                raise UserError(f"{name}, line {row:,}: not JSON: {reason}", "repair it") from error
            if len(buffer) - start > LONGEST_RECORD:
                raise too_long(name, line) from error
        except ValueError as error:
            raise UserError(f"{name}, line {line:,}: {error}", "repair it") from error
        buffer = buffer[start:]
        size = max(
            BLOCK, len(buffer)
        )  # an unfinished record is parsed again: as seldom as possible


def _after_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    assert found is not None
    return found.end()


def text_of(record: Any, place: str, reader: Reader, tally: Tally) -> bytes:
    """The text of a record in UTF-8: a string, or the wanted field of an object; none for a null.

    Args:
        record: a JSON value.
        place: file and position, for messages.

    Raises:
        UserError: there is no such text.
    """
    field, text = reader.text_field, record
    if isinstance(record, dict):
        try:
            text = fields.look_up(record, field)
        except KeyError:
            hint = field_hint(field, fields.texts(record))
            raise UserError(f"{place}: no field {field!r}", hint) from None
        if fields.is_chat(text):
            text = _chat(text, place, field, tally)
    elif not isinstance(record, str | None):
        raise UserError(
            f"{place}: {fields.kind(record)} where an object is needed",
            f'each record must look like {{"{field}": "..."}}',
        )
    if text is None:
        return b""
    if not isinstance(text, str):
        inside = fields.texts({field: text})
        raise UserError(
            f"{place}: field {field!r} is {fields.kind(text)}, not text",
            field_hint(field, inside) if inside else _SKIP,
        )
    return utf8(text, place, reader, tally)


def _chat(messages: list[Any], place: str, field: str, tally: Tally) -> str:
    try:
        text = fields.chat(messages)
    except ValueError as error:
        raise UserError(f"{place}: field {field!r}: {error}", f"repair it, or {_SKIP}") from error
    tally.chats += 1
    return text


def utf8(text: str, place: str, reader: Reader, tally: Tally) -> bytes:
    """A record's text in UTF-8.

    Args:
        text: may hold halves of surrogate pairs, as JSON allows, and invalid bytes as
            ``surrogateescape`` writes them.

    Raises:
        UserError: it does, and the reader is strict.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        if reader.errors == "strict" and 0xDC80 <= half < 0xDD00:
            what = f"invalid UTF-8 (0x{half - 0xDC00:02x})"
            raise UserError(f"{place}: {what}", OTHER_ENCODING) from error
        if reader.errors == "strict":
            what = f"half a surrogate pair (\\u{half:04x}) at character {error.start + 1:,}"
            raise UserError(f"{place}: {what}", "use --errors replace or skip") from error
    tally.broken_bytes += sum("\ud800" <= c <= "\udfff" for c in text)
    return text.encode("utf-8", "replace" if reader.errors == "replace" else "ignore")


def field_hint(field: str, known: Mapping[str, str]) -> str:
    """What to do about a field that is missing.

    Args:
        known: the fields there, each with its text in some record; the longest is the likeliest.
    """
    known = {name: text for name, text in known.items() if name}
    if not known:
        return "there is no field with text"
    there = ", ".join(f"{key!r:.{_LONGEST_FIELD}}" for key in list(known)[:8])
    usual = [name for name in known if len(name) <= _LONGEST_FIELD]
    likely = nearest(field, usual) or max(usual, key=lambda name: len(known[name]), default="")
    how = f"; name one with {option('text_field', likely)}" if likely else ""
    return f"fields with text here: {there}{how}"
