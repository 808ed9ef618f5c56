"""The contents of the cache: fetched files, prepared data and copies of runs, with their sizes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanogpt_cli import files, foreign_files, places
from nanogpt_cli.errors import UserError, nearest

KINDS = ("assets", "data", "mirrors", "other")


@dataclass(frozen=True)
class Entry:
    """One file or folder in the cache.

    Attributes:
        kind: "assets" (fetched files), "data" (prepared sets), "mirrors" (copies of runs on other
            machines) or "other".
        name: of the file or folder.
        path: its path.
        bytes: size on disk, including everything below it.
    """

    kind: str
    name: str
    path: Path
    bytes: int


def entries() -> list[Entry]:
    """Everything in the cache, the largest first within its kind."""
    home = places.cache_home()
    folders = {
        "assets": places.assets_folder(), "data": home / "data",
        "mirrors": places.mirrors_folder(), "other": home,
    }  # fmt: skip
    found = []
    for kind, folder in folders.items():
        paths = foreign_files.entries(folder)
        if kind == "other":
            paths = [path for path in paths if path.name not in KINDS[:-1]]
        found += [Entry(kind, path.name, path, size(path)) for path in paths]
    return sorted(found, key=lambda entry: (KINDS.index(entry.kind), -entry.bytes, entry.name))


def select(names: Sequence[str]) -> list[Entry]:
    """The entries with one of these names or kinds; all of them when ``names`` is empty.

    Raises:
        UserError: a name matches nothing in the cache.
    """
    there = entries()
    known = [*KINDS, *(entry.name for entry in there)]
    for name in names:
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean {close}? " if close else ""
            raise UserError(f"no {name!r} in the cache", f"{hint}`nanogpt cache list` shows it")
    return [e for e in there if not names or e.kind in names or e.name in names]


def remove(entry: Entry) -> None:
    """Delete an entry; a crash leaves it whole or under a temporary name, never in part.

    Raises:
        UserError: the operating system refuses.
    """
    with files.readable_os_errors("clear the cache", entry.path):
        if entry.path.is_dir() and not entry.path.is_symlink():
            files.remove_folder(entry.path)
            if entry.path.exists():  # on a file system where it cannot be renamed first
                shutil.rmtree(entry.path)
        else:
            entry.path.unlink(missing_ok=True)


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed."""
    total = 0
    pending = [path]
    while pending:
        current = pending.pop()
        try:
            if current.is_dir() and not current.is_symlink():
                pending += [Path(entry.path) for entry in os.scandir(current)]
            else:
                total += current.lstat().st_size
        except OSError:  # deleted meanwhile, or not readable for this user
            continue
    return total
