"""Opening files for reading: counted and hashed as they are read, unpacked, turned into UTF-8."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import storable
from nanogpt_cli.text.sources.documents import Readable

if TYPE_CHECKING:
    from hashlib import _Hash

    from typing_extensions import Buffer

PACKED = (".gz", ".zst")
PIPE_HINT: Final = "redirect it to the standard input of `nanogpt prepare -`"
_ZSTD_BYTES = 1 << 14  # read at a time: repetitive data may grow a thousandfold when unpacked


@dataclass(frozen=True)
class SourceFile:
    """A file that was read to its end, as the manifest records it.

    Attributes:
        path: absolute path (``storable``), or a name such as ``stdin`` if it is not a regular file.
        size: bytes on disk (before unpacking).
        mtime_ns: modification time; None for a stream.
        sha256: hex digest of these bytes.
    """

    path: str
    size: int
    mtime_ns: int | None
    sha256: str


class Meter:
    """Bytes read from disk so far, over all sources; other threads may read it."""

    def __init__(self) -> None:
        self.bytes = 0


class _Metered(io.RawIOBase):
    """A raw file whose reads are counted and hashed."""

    def __init__(self, raw: BinaryIO, meter: Meter) -> None:
        self._raw = raw
        self._meter = meter
        self.size = 0
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        count = int(self._raw.readinto(buffer))  # type: ignore[attr-defined]
        self.digest.update(memoryview(buffer)[:count])
        self.size += count
        self._meter.bytes += count
        return count


class Reading:
    """An open source; ``finished()`` describes it after the last byte was read."""

    def __init__(self, name: str, raw: BinaryIO, meter: Meter) -> None:
        self.name = name
        self._raw = raw
        self._before = os.fstat(raw.fileno())
        self._metered = _Metered(raw, meter)
        self.buffered = cast(BinaryIO, io.BufferedReader(self._metered, 1 << 18))

    def digest_of(self, stream: Readable) -> _Hash | None:
        """The running sha256 of the bytes of ``stream`` if they are the file's own, else None."""
        return self._metered.digest if stream is self.buffered else None

    def finished(self) -> SourceFile:
        """Read any unread rest and describe the file. Raises if it changed meanwhile."""
        while self.buffered.read(1 << 20):
            pass
        after = os.fstat(self._raw.fileno())
        regular = stat.S_ISREG(after.st_mode)
        if regular and (after.st_size, after.st_mtime_ns) != (
            self._before.st_size,
            self._before.st_mtime_ns,
        ):
            raise UserError(f"{self.name} changed while it was being read", "run it again")
        mtime = after.st_mtime_ns if regular else None
        return SourceFile(self.name, self._metered.size, mtime, self._metered.digest.hexdigest())


@contextlib.contextmanager
def readable_errors(name: str) -> Iterator[None]:
    """Turn errors of the system and of unpacking into a ``UserError`` about ``name``."""
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(
            f"{name} is a corrupt or truncated gzip file: {error}", "download it again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from error


@contextlib.contextmanager
def open_file(path: Path, meter: Meter) -> Iterator[Reading]:
    """Open a file for one pass over its bytes on disk."""
    with foreign_files.opened(path, PIPE_HINT) as raw:
        yield Reading(storable(str(path.absolute())), raw, meter)


def unpacked(reading: Reading, suffix: str) -> Readable:
    """The bytes inside a ``.gz`` or ``.zst`` file; any other suffix reads the file as it is."""
    if suffix == ".gz":
        return cast(Readable, gzip.GzipFile(fileobj=reading.buffered, mode="rb"))
    if suffix == ".zst":
        return cast(Readable, io.BufferedReader(_zstd(reading), 1 << 18))
    return cast(Readable, reading.buffered)


def _zstd(reading: Reading) -> io.RawIOBase:
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            f"{reading.name}: reading .zst needs the package zstandard",
            "pip install 'nanogpt-cli[formats]', or unpack it with `zstd -d`",
        ) from error
    del zstandard
    return _Zstd(reading)


class _Zstd(io.RawIOBase):
    """The bytes inside zstd frames; unlike the library's reader it notices a truncated file."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._frame: Any = None
        self._packed = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        while not self._ready and self._advance():
            pass
        view = memoryview(buffer)
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _advance(self) -> bool:
        import zstandard

        packed = self._packed or self._reading.buffered.read(_ZSTD_BYTES)
        self._packed = b""
        if not packed:
            if self._frame is not None:
                raise self._corrupt("it ends in the middle")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            self._ready = self._frame.decompress(packed)
        except zstandard.ZstdError as error:
            raise self._corrupt(str(error)) from error
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
        return True

    def _corrupt(self, reason: str) -> UserError:
        return UserError(
            f"{self._reading.name} is a corrupt or truncated zstd file: {reason}",
            "download it again",
        )
