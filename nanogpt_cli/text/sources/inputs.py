"""Reading documents from what the user names: files, folders, records, standard input.

A document is one file or one record. It is read in chunks of about half a megabyte, so that its
size does not matter; each chunk ends where a cut does not change the tokens.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from nanogpt_cli import foreign_files, text_encoding
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import storable
from nanogpt_cli.text.sources import binary, csv_records, parquet_records, records
from nanogpt_cli.text.sources.decoding import as_utf8
from nanogpt_cli.text.sources.documents import Chunk, Readable, Reader, Tally, text_chunks
from nanogpt_cli.text.sources.reading import (
    PACKED,
    PIPE_HINT,
    Meter,
    Reading,
    SourceFile,
    open_file,
    readable_errors,
    unpacked,
)
from nanogpt_cli.text.tokenizers import cuts
from nanogpt_cli.user_input import expanded

_RECORD_KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet",
}  # fmt: skip
_SNIFFED_BYTES = 8192
_PARQUET = b"PAR1"


class TextSource(Protocol):
    """Yields the chunks of documents, and afterwards describes the files it has read."""

    name: str
    size: int | None

    def chunks(self, reader: Reader, meter: Meter, tally: Tally) -> Iterator[Chunk]:
        """The documents' chunks, in order."""
        ...

    def read(self) -> list[SourceFile]:
        """The files that ``chunks`` has read; valid after its end."""
        ...


def text_document(
    stream: Readable, name: str, reading: Reading, reader: Reader, tally: Tally
) -> Iterator[Chunk]:
    """The chunks of a stream that is one document in the reader's encoding."""
    text = as_utf8(stream, name, reader, tally, newlines=reader.newlines)
    if records.looks_like_lines(text):
        tally.remark(
            "read as plain text, but its lines are records: give it a name that ends in .jsonl",
            name,
        )
    own_bytes = text.unchanged and not text.skipped
    digest = reading.digest_of(stream) if own_bytes else None
    yield from text_chunks(text, name, reader, tally, digest=digest, offset=text.skipped)


def _kind(path: Path) -> str:
    """``text`` or a kind of records, by the suffix of the file inside any compression."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return _RECORD_KINDS.get(suffixes[-1], "text") if suffixes else "text"


class FileSource:
    """A file of text or of records, as its suffix says; ``.gz`` and ``.zst`` are unpacked."""

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        self.path = path
        self._encoding = encoding
        self.name = storable(str(path))
        self.size: int | None = path.stat().st_size if path.is_file() else None
        self._read: list[SourceFile] = []

    @property
    def holds_records(self) -> bool:
        """Whether the file is one of records; the content decides for ``.json`` alone."""
        kind = _kind(self.path)
        if kind != "json":
            return kind != "text"
        with open_file(self.path, Meter()) as reading, readable_errors(self.name):
            stream = unpacked(reading, self.path.suffix.lower())
            reader = Reader(cuts.character_cut, encoding=self._encoding)
            text = as_utf8(stream, self.name, reader, Tally())
            return records.json_layout(text, reader.text_field) != "text"

    def read(self) -> list[SourceFile]:
        """See ``TextSource``."""
        return self._read

    def chunks(self, reader: Reader, meter: Meter, tally: Tally) -> Iterator[Chunk]:
        """See ``TextSource``."""
        with open_file(self.path, meter) as reading, readable_errors(self.name):
            yield from self._chunks(reading, reader, tally)
            self._read = [reading.finished()]

    def _chunks(self, reading: Reading, reader: Reader, tally: Tally) -> Iterator[Chunk]:
        kind = _kind(self.path)
        if kind == "parquet":
            head = cast(io.BufferedReader, reading.buffered).peek()
            if not head.startswith(_PARQUET):
                raise binary.refusal(head, self.name) or UserError(
                    f"{self.name} is not a Parquet file",
                    "give it the name of what it is, such as .csv",
                )
            yield from parquet_records.parquet(self.path, self.name, reader, tally)
            return
        stream = unpacked(reading, self.path.suffix.lower())
        if kind == "text":
            yield from text_document(stream, self.name, reading, reader, tally)
            return
        text = as_utf8(stream, self.name, reader, tally)
        if kind in ("csv", "tsv"):
            yield from csv_records.csv(text, self.name, kind == "tsv", reader, tally)
            return
        layout = "lines" if kind == "jsonl" else records.json_layout(text, reader.text_field)
        if layout == "lines":
            yield from records.jsonl(text, self.name, reader, tally)
        elif layout == "array":
            yield from records.json_array(text, self.name, reader, tally)
        elif layout == "object":
            yield from records.json_object(text, self.name, reader, tally)
        else:
            tally.remark("read as plain text: it holds no array and no lines of records", self.name)
            plain = replace(reader, encoding="utf-8")
            yield from text_document(text, self.name, reading, plain, tally)


class StandardInput:
    """Everything on standard input, as one document."""

    name = "stdin"
    size: int | None = None

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream = stream
        self._read: list[SourceFile] = []

    def read(self) -> list[SourceFile]:
        """See ``TextSource``."""
        return self._read

    def chunks(self, reader: Reader, meter: Meter, tally: Tally) -> Iterator[Chunk]:
        """See ``TextSource``."""
        stream = self._stream or open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # noqa: SIM115
        _check_end(stream)
        reading = Reading(self.name, stream, meter)
        with readable_errors(self.name):
            yield from text_document(unpacked(reading, ""), self.name, reading, reader, tally)
        self._read = [reading.finished()]


def _check_end(stream: BinaryIO) -> None:
    """Refuse a device without end (``< /dev/zero``); a terminal and ``/dev/null`` have one."""
    about = os.fstat(stream.fileno())
    endless = stat.S_ISCHR(about.st_mode) and not stream.isatty()
    if endless and about.st_rdev != Path(os.devnull).stat().st_rdev:
        raise UserError(
            "stdin is a device without end", "give it a file or the output of a program"
        )


def expand(
    inputs: Sequence[str], glob: str | None, encoding: str, tally: Tally
) -> list[FileSource]:
    """The files that ``inputs`` name, in the order given; those of a folder are sorted.

    Args:
        inputs: paths of files and folders.
        glob: take only a folder's files that match (``*.py``, ``**/*.md``); named files always.
        encoding: encoding of text files.
        tally: counts the binary files of folders, which are skipped.

    Raises:
        UserError: a path is missing, or a folder holds nothing to read.
    """
    sources: list[FileSource] = []
    for text in inputs:
        path = expanded(text)
        if path.is_dir():
            paths = (p for p in walk(path, glob) if _is_text(p, encoding, tally))
            found = [FileSource(p, encoding) for p in paths]
            if not found:
                raise _no_text(path, glob, tally)
            sources += found
        else:
            _check_there(path)
            sources.append(FileSource(path, encoding))
    return sources


def _no_text(folder: Path, glob: str | None, tally: Tally) -> UserError:
    """The error about a folder without anything to read."""
    hint = "hidden and binary files are skipped"
    if found := tally.first_binary:
        hint += f"; {found.message}" + (f": {found.hint}" if found.hint else "")
    return UserError(f"no text files in {folder}" + (f" match {glob!r}" if glob else ""), hint)


def _check_there(path: Path) -> None:
    try:
        foreign_files.check(path, PIPE_HINT)
    except foreign_files.MissingFileError as error:
        hint = "check the path; `nanogpt prepare --list` shows the sets known by name"
        raise UserError(error.message, hint) from error


def walk(folder: Path, glob: str | None = None, without: Collection[str] = ()) -> Iterator[Path]:
    """Regular files below ``folder``, sorted, without hidden ones; each real folder once.

    Args:
        folder: where to start.
        glob: only files whose name, or path below ``folder``, matches.
        without: names of folders to skip.

    Raises:
        UserError: a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()

    def visit(current: str) -> Iterator[Path]:
        with readable_errors(current):
            about = Path(current).stat()
            if (about.st_dev, about.st_ino) in seen:
                return  # a symbolic link led back here
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(current) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is(entry.is_dir):
                if entry.name not in without:
                    yield from visit(entry.path)
            elif _is(entry.is_file) and (glob is None or _matches(entry, folder, glob)):
                yield Path(entry.path)

    yield from visit(str(folder))


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:
        return False  # a link to itself is neither file nor folder


def _matches(entry: os.DirEntry[str], folder: Path, glob: str) -> bool:
    relative = Path(entry.path).relative_to(folder).as_posix()
    return fnmatchcase(relative, glob) or fnmatchcase(entry.name, glob.removeprefix("**/"))


def _is_text(path: Path, encoding: str, tally: Tally) -> bool:
    """Whether a file of a folder is to be read; a binary one is counted.

    One that holds zero bytes is binary, unless these are due to UTF-16 or UTF-32: leaving such a
    text out without a word would be wrong, and reading it fails with a hint.
    """
    suffix, name = path.suffix.lower(), storable(str(path))
    archive = ".tar" in path.suffixes and suffix in PACKED
    if (suffix in PACKED or suffix in _RECORD_KINDS) and not archive:
        return True
    with foreign_files.opened(path) as file:
        head = file.read(_SNIFFED_BYTES)
    wrong = binary.refusal(head, name)
    wide = text_encoding.is_wide(encoding) or text_encoding.guess(head)
    if wrong is None and b"\0" in head and not wide:
        wrong = UserError(f"{name} is binary")
    if wrong is None:
        return True
    tally.skipped_files += 1
    tally.first_binary = tally.first_binary or wrong
    return False
