"""Writing files so that a crash at any moment leaves either the old state or the new one.

Everything is written beside its target under a temporary name, flushed to the disk and renamed.
Temporary names begin with ``.tmp-`` so that the next run can recognise and remove leftovers.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nanogpt_cli import foreign_files, places
from nanogpt_cli.errors import UserError

TEMPORARY_PREFIX = ".tmp-"
_CHUNK = 1 << 20


def fsync_directory(path: Path) -> None:
    """Make a rename inside ``path`` durable. A no-op where directories cannot be opened."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _fsync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            fsync_directory(path)
    fsync_directory(folder)


@contextlib.contextmanager
def readable_os_errors(what: str, path: Path) -> Iterator[None]:
    """Turn errors of the operating system (full disk, no permission, …) into ``UserError``.

    Args:
        what: the action in words, e.g. ``"save the checkpoint"``.
        path: the file or folder concerned.
    """
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: ("the disk is full", "free some space and run the command again"),
            errno.EDQUOT: ("the disk quota is used up", "free some space and run it again"),
            errno.EROFS: ("the disk is read-only", _elsewhere(path)),
            errno.EACCES: ("permission denied", _elsewhere(path)),
            errno.EPERM: ("permission denied", _elsewhere(path)),
        }
        reason, hint = reasons.get(error.errno or 0, (error.strerror or str(error), ""))
        raise UserError(f"cannot {what} at {path}: {reason}", hint) from error


def _elsewhere(path: Path) -> str:
    """How to have written elsewhere what cannot be written at ``path``."""
    home = places.cache_home()
    if path.absolute().is_relative_to(home.absolute()):
        return f"set NANOGPT_HOME to a folder that can be written; it is {home} now"
    return "choose another folder with --out"


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` with ``data``: temporary file, fsync, rename, fsync of the folder.

    Raises:
        UserError: a device, a named pipe or the like is there; renaming would remove it, for a
            superuser even ``/dev/null``.
        OSError: the operating system refuses.
    """
    _check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _apply_umask(Path(name))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def _check_replaceable(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing is there, or writing will say what is wrong
        return
    stream = path.is_symlink() and str(path.readlink()).startswith("/proc/")  # /dev/stdout
    if stream or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(
            f"cannot write {path}: it is a device or a pipe, not a regular file",
            "write to a file, and copy that",
        )


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of UTF-8 text with unchanged newlines."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN), two spaces of indent, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _apply_umask(path: Path) -> None:
    """Set the permissions that the umask gives; mkstemp and mkdtemp use 0600 and 0700."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


@contextlib.contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes ``target`` if the block succeeds.

    If the block raises, the temporary folder is removed and ``target`` is untouched.

    Args:
        target: the folder to create.
        replace: move an existing ``target`` away first (and remove it afterwards).

    Raises:
        FileExistsError: ``target`` exists and ``replace`` is false.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{target.name}-", dir=target.parent))
    try:
        yield folder
        for path in (
            folder,
            *folder.rglob("*"),
        ):  # some libraries make files private to their owner
            _apply_umask(path)
        _fsync_tree(folder)
        _move_into_place(folder, target, replace)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    fsync_directory(target.parent)


def _move_into_place(folder: Path, target: Path, replace: bool) -> None:
    if not target.exists():
        folder.rename(target)
        return
    if not replace:
        raise FileExistsError(errno.EEXIST, "already exists", str(target))
    # Named after the target, so that the target's next writer recognises a leftover.
    old = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{target.name}-", dir=target.parent))
    target.rename(old / target.name)
    try:
        folder.rename(target)
    except BaseException:
        (old / target.name).rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a crash leaves it whole or under a temporary name, never in part."""
    try:
        doomed = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}old-", dir=folder.parent))
        folder.rename(doomed / folder.name)
    except OSError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove temporary files that killed writers left in ``folder``; returns their paths."""
    found = [p for p in foreign_files.entries(folder) if p.name.startswith(TEMPORARY_PREFIX)]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file ``path``; the system frees it when a process dies, however it dies.

    Args:
        path: the lock file; it is created if it is missing.
        waiting: called before waiting for another process that holds the lock; it may raise.

    Raises:
        UserError: ``path`` is not a regular file, or the operating system refuses.
    """
    import filelock

    if path.is_symlink() or (foreign_files.present(path) and not path.is_file()):
        raise UserError(
            f"the lock file {path} is not a regular file", "remove it, or move it elsewhere"
        )
    with readable_os_errors("create the lock", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            waiting()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a regular file, read in chunks of 1 MiB.

    Raises:
        UserError: it is missing or not a regular file.
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with foreign_files.opened(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def checksum(values: Mapping[str, Any]) -> str:
    """sha256 of strict JSON values, however they are laid out in a file."""
    return sha256_bytes(json.dumps(values, sort_keys=True).encode())


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()
