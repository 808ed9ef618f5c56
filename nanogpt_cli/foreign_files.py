"""Files that somebody else may have written: the one way to open and read them.

A path can lead to anything: a folder, a named pipe without a writer, an endless device. So a file
is opened without blocking, must be a regular file, and is read only up to a limit. What its content
may be is for ``parsing.py``.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn, cast

from nanogpt_cli import parsing, text_encoding
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Size limits in bytes: small files, vocabularies (a million merges take 85 MB).
LARGEST_CONFIG: Final = 1 << 24
LARGEST_VOCABULARY: Final = 1 << 27
_KINDS: Final = (
    (stat.S_ISDIR, "it is a folder"),
    (stat.S_ISFIFO, "it is a named pipe, not a regular file"),
    (stat.S_ISSOCK, "it is a socket, not a regular file"),
    (stat.S_ISCHR, "it is a device, not a regular file"),
    (stat.S_ISBLK, "it is a device, not a regular file"),
)
_COPY_FIRST: Final = "save its content in a file and give that"


class MissingFileError(UserError):
    """Nothing exists at this path."""


def check(path: Path, pipe_hint: str = "") -> os.stat_result:
    """``stat`` of a regular file; for files that a library opens by name itself.

    Args:
        path: the file; links are followed.
        pipe_hint: advice for the user if it is a named pipe.

    Raises:
        MissingFileError: there is no such file.
        UserError: it is not a regular file, or access is denied.
    """
    try:
        about = path.stat()
    except (OSError, ValueError) as error:
        _refuse(path, error)
    _check_kind(path, about.st_mode, pipe_hint)
    return about


def present(path: Path) -> bool:
    """Whether anything exists at this path; a dangling link counts.

    Raises:
        UserError: its folder cannot be searched.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        _refuse(path, error)
    return True


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name; nothing where there is no folder.

    Raises:
        UserError: it cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        _refuse(folder, error)


class _File(io.FileIO):
    """A file whose errors of reading are a ``UserError`` with its name, which Python leaves out."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "rb")
        self._path = path

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            return super().read(-1 if size is None else size)
        except OSError as error:
            _refuse(self._path, error)

    def readinto(self, buffer: Buffer, /) -> int:
        try:
            return super().readinto(buffer)
        except OSError as error:
            _refuse(self._path, error)


def opened(path: Path, pipe_hint: str = "") -> BinaryIO:
    """A regular file opened for reading bytes, unbuffered; opening never blocks.

    Raises:
        UserError: as ``check``, or permission to read is denied. Reading raises it as well, when
            the disk fails.
    """
    check(path, pipe_hint)  # first, because merely opening a device can have effects
    flags = os.O_RDONLY
    for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        _refuse(path, error)
    try:
        _check_kind(path, os.fstat(descriptor).st_mode, pipe_hint)
        return cast(BinaryIO, _File(descriptor, path))
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, limit: int = LARGEST_CONFIG, pipe_hint: str = "") -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        UserError: as ``opened``, or it is larger.
    """
    with opened(path, pipe_hint) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= limit:
            data = io.BufferedReader(cast(io.RawIOBase, file)).read(limit + 1)
            size = len(data)
        if size > limit:
            raise UserError(
                f"cannot read {path}: it has more than {limit:,} bytes",
                "files of this kind are far smaller; check that it is the right one",
            )
        return data


def read_text(path: Path, limit: int = LARGEST_CONFIG) -> str:
    """The text in a regular file of at most ``limit`` bytes.

    Raises:
        UserError: as ``read_bytes``, or it is not UTF-8.
    """
    return decoded(read_bytes(path, limit), str(path))


def decoded(data: bytes, name: str) -> str:
    """The text of a whole file: UTF-8, or what its byte-order mark says; the mark is left out.

    Args:
        data: the file's content.
        name: what to call it in a message.

    Raises:
        UserError: it is not text in this encoding.
    """
    encoding, skipped = text_encoding.marked(data)
    try:
        text = data[skipped:].decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        encoding = text_encoding.guess(data) or encoding
        raise UserError(
            f"{name} is not UTF-8 text (byte {error.start + skipped:,})",
            f"save it as UTF-8; it looks like {encoding}" if encoding else "save it as UTF-8",
        ) from None
    if 50 * text.count("\0") > len(text):
        raise UserError(
            f"{name} is not text: {text.count(chr(0)) / len(text):.0%} of it are zero bytes",
            f"save it as UTF-8; it looks like {found}"
            if (found := text_encoding.guess(data))
            else "",
        )
    return text


def lines(text: str) -> list[str]:
    r"""The lines of a text, without their ends, ``\n`` or ``\r\n``.

    Unlike ``str.splitlines``, it counts as editors and parsers do: U+2028, U+0085, a form feed and
    the like end no line.
    """
    found = text.split("\n")
    return [line.removesuffix("\r") for line in (found if found[-1] else found[:-1])]


def read_json(path: Path, limit: int = LARGEST_CONFIG, *, long_numbers: bool = False) -> Any:
    """The value in a JSON file of at most ``limit`` bytes; ``long_numbers`` as ``parse_json``.

    Raises:
        UserError: as ``read_text``, or it is not JSON that ``parse_json`` accepts.
    """
    try:
        return parsing.parse_json(read_text(path, limit), long_numbers=long_numbers)
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None


def read_object(
    path: Path, limit: int = LARGEST_CONFIG, *, long_numbers: bool = False
) -> dict[str, Any]:
    """The object in a JSON file of at most ``limit`` bytes; ``long_numbers`` as ``parse_json``.

    Raises:
        UserError: as ``read_json``, or it holds another value.
    """
    value = read_json(path, limit, long_numbers=long_numbers)
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def _refuse(path: Path, error: OSError | ValueError) -> NoReturn:
    """Raise a ``UserError`` for what the system or Python reports about a path."""
    if isinstance(error, ValueError):  # a zero byte, which JSON and TOML can hold
        raise UserError(f"cannot read {str(path)!r}: this is not a file name") from None
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        raise MissingFileError(
            f"cannot read {path}: it is a link to {path.readlink()}, which does not exist"
        ) from None
    reason = f"cannot read {_short(path)}: {error.strerror or error}"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        raise MissingFileError(reason, "check the path") from None
    raise UserError(reason, _ADVICE.get(error.errno or 0, "")) from None


_ADVICE: Final = {
    errno.EACCES: "ask its owner, or change its permissions",
    errno.EIO: "the disk may be failing; take a copy of the file if there is one",
    errno.ELOOP: "this symbolic link leads back to itself",
}


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _check_kind(path: Path, mode: int, pipe_hint: str) -> None:
    if stat.S_ISREG(mode):
        return
    reason = next((words for test, words in _KINDS if test(mode)), "it is not a regular file")
    if stat.S_ISDIR(mode):
        hint = "name a file in it"
    else:
        hint = pipe_hint if pipe_hint and stat.S_ISFIFO(mode) else _COPY_FIRST
    raise UserError(f"cannot read {path}: {reason}", hint)
