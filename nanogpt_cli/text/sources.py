"""Reading documents from what the user names: files, folders, records, standard input.

A document is one file or one record. It is read in chunks of about half a megabyte, so that its
size does not matter; each chunk ends where a cut does not change the tokens.
"""

from __future__ import annotations

import codecs
import os
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, Protocol

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import storable
from nanogpt_cli.text.documents import Chunk, Reader, Tally, text_chunks
from nanogpt_cli.text.reading import (
    PACKED,
    PIPE_HINT,
    Meter,
    Readable,
    Reading,
    SourceFile,
    Transcoded,
    open_file,
    readable_errors,
    unpacked,
)
from nanogpt_cli.user_input import expanded

_RECORD_KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
}  # fmt: skip
_SNIFFED_BYTES = 8192


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


def as_utf8(stream: Readable, name: str, reader: Reader) -> Readable:
    """The stream, converted to UTF-8 if it has another encoding."""
    if codecs.lookup(reader.encoding).name == "utf-8":
        return stream
    return Transcoded(stream, name, reader.encoding, reader.errors)


class FileSource:
    """A file of text or of records, as its suffix says; ``.gz`` and ``.zst`` are unpacked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = storable(str(path))
        self.size: int | None = path.stat().st_size if path.is_file() else None
        self._read: list[SourceFile] = []

    @property
    def kind(self) -> str:
        """``text``, ``jsonl``, ``csv``, ``tsv`` or ``parquet``."""
        suffixes = [s.lower() for s in self.path.suffixes]
        if suffixes and suffixes[-1] in PACKED:
            suffixes.pop()
        return _RECORD_KINDS.get(suffixes[-1], "text") if suffixes else "text"

    def read(self) -> list[SourceFile]:
        """See ``TextSource``."""
        return self._read

    def chunks(self, reader: Reader, meter: Meter, tally: Tally) -> Iterator[Chunk]:
        """See ``TextSource``."""
        with open_file(self.path, meter) as reading, readable_errors(self.name):
            yield from self._chunks(reading, reader, tally)
            self._read = [reading.finished()]

    def _chunks(self, reading: Reading, reader: Reader, tally: Tally) -> Iterator[Chunk]:
        from nanogpt_cli.text import records

        if self.kind == "parquet":
            yield from records.parquet(self.path, self.name, reader, tally)
            return
        stream = as_utf8(unpacked(reading, self.path.suffix.lower()), self.name, reader)
        if self.kind == "text":
            yield from text_chunks(stream, self.name, reader, tally, reading.digest_of(stream))
        elif self.kind == "jsonl":
            yield from records.jsonl(stream, self.name, reader, tally)
        else:
            yield from records.csv(stream, self.name, self.kind == "tsv", reader, tally)


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
            text = as_utf8(unpacked(reading, ""), self.name, reader)
            yield from text_chunks(text, self.name, reader, tally, reading.digest_of(text))
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
        encoding: encoding of text files. A zero byte marks a file as binary unless this is UTF-16
            or UTF-32.
        tally: counts the binary files of folders, which are skipped.

    Raises:
        UserError: a path is missing, or a folder holds nothing to read.
    """
    sources: list[FileSource] = []
    for text in inputs:
        path = expanded(text)
        if path.is_dir():
            wide = encoding.lower().startswith(("utf-16", "utf16", "utf-32", "utf32"))
            found = [FileSource(p) for p in walk(path, glob) if wide or _is_text(p, tally)]
            if not found:
                raise UserError(
                    f"no text files in {path}" + (f" match {glob!r}" if glob else ""),
                    "hidden and binary files are skipped",
                )
            sources += found
        else:
            _check_there(path)
            sources.append(FileSource(path))
    return sources


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


def _is_text(path: Path, tally: Tally) -> bool:
    suffix = path.suffix.lower()
    if suffix in PACKED or suffix in _RECORD_KINDS:
        return True
    with foreign_files.opened(path) as file:
        binary = b"\0" in file.read(_SNIFFED_BYTES)
    tally.skipped_files += binary
    return not binary
