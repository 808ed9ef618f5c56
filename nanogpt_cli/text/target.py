"""The folder a data set is written to: its lock, its leftovers, and whether it is up to date."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanogpt_cli import files, foreign_files, parsing
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import storable
from nanogpt_cli.text import build, tokens
from nanogpt_cli.text.request import Reporter, Request
from nanogpt_cli.text.sources.inputs import FileSource, TextSource

_OURS = {tokens.MANIFEST, tokens.TOKENIZER, build.SOURCES, "train.bin", "val.bin"}


@contextlib.contextmanager
def locked(target: Path, report: Reporter) -> Iterator[None]:
    """Hold the target's lock; a second run reports that it waits, and waits here."""

    def waiting() -> None:
        report(f"another run is preparing {target}: waiting for it")

    with files.locked(target.parent / f".{target.name}.lock", waiting):
        yield


def remove_leftovers(target: Path) -> list[Path]:
    """Remove temporary folders that killed runs left; call it with the lock held."""
    name = re.escape(target.name)
    made = re.compile(rf"{re.escape(files.TEMPORARY_PREFIX)}{name}-[a-z0-9_]{{8}}")
    found = [p for p in foreign_files.entries(target.parent) if made.fullmatch(p.name)]
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return found


def check_replaceable(target: Path) -> None:
    """Raise ``UserError`` if ``target`` holds anything that ``prepare`` did not write."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file", "choose another folder with --out")
    held = [path.name for path in foreign_files.entries(target)]
    foreign = [name for name in held if name not in _OURS]
    if foreign or (held and not tokens.is_prepared(target)):
        what = f"holds {foreign[0]!r}" if foreign else "is not a prepared data set"
        raise UserError(
            f"{target} {what}: it will not be overwritten", "choose another folder with --out"
        )


def what_changed(target: Path, request: Request, sources: list[TextSource]) -> str:
    """Why the set in ``target`` is not, or not whole, what is asked for; empty if it is."""
    if not tokens.is_prepared(target):
        return "not prepared yet"
    return outdated(target, request, sources) or damage(target)


def outdated(target: Path, request: Request, sources: list[TextSource]) -> str:
    """Why the set in ``target`` does not match the request; empty if it does.

    A file of the same size and modification time counts as unchanged; otherwise its hash decides.
    """
    try:
        return difference(target, request) or _sources_changed(
            target, sources, partly=request.limit is not None
        )
    except UserError as error:
        return error.message


def damage(folder: Path) -> str:
    """Why a set cannot be opened; empty for a whole one, and for one that a newer version can."""
    try:
        tokens.open_data(folder)
    except tokens.NewerVersionError:
        return ""
    except UserError as error:
        return error.message
    return ""


def difference(folder: Path, request: Request, *, named: bool = False) -> str:
    """The first option of which a prepared set differs from a request; empty if none does.

    Args:
        folder: the set.
        request: a checked one.
        named: the request names the set itself instead of a text. It then asks for nothing that it
            leaves at its default.
    """
    about, usual = tokens.read_manifest(folder), Request(()).to_json()
    old = usual | about.raw["request"]  # a set of an earlier version lacks newer options
    for key, value in request.to_json().items():
        unasked = named and (key == "inputs" or value in (usual[key], about.kind))
        if old[key] != value and not unasked:
            return f"{key} was {old[key]!r}, now {value!r}"
    return ""


def _sources_changed(target: Path, sources: list[TextSource], *, partly: bool) -> str:
    try:
        old = recorded_sources(target)
    except UserError as error:
        return error.message
    paths = {storable(str(s.path.absolute())): s for s in sources if isinstance(s, FileSource)}
    for named in paths:
        if named not in old and not partly:
            return f"{named} is new"
    for named, row in old.items():
        if row["mtime_ns"] is None:
            if named == "stdin" or not named.startswith("hub:"):
                return f"{named} cannot be compared"
        elif named not in paths:
            return f"{named} is gone"
        elif changed := _file_changed(paths[named].path, row):
            return changed
    return ""


def recorded_sources(folder: Path) -> dict[str, dict[str, Any]]:
    """The files that a set was made from: path -> path, size, mtime_ns and sha256.

    Raises:
        UserError: the list is missing or damaged.
    """
    path = folder / build.SOURCES
    lines = foreign_files.lines(foreign_files.read_text(path, foreign_files.LARGEST_VOCABULARY))
    try:
        return {row["path"]: row for row in map(_source_row, lines)}
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _source_row(line: str) -> dict[str, Any]:
    """A line of ``sources.jsonl``; raises ``ValueError`` for any other."""
    row = parsing.parse_json(line)
    kinds = {"path": str, "size": int, "mtime_ns": int | None, "sha256": str}
    if not isinstance(row, dict) or not all(
        key in row and isinstance(row[key], kind) for key, kind in kinds.items()
    ):
        raise ValueError("a line does not describe a file")
    return row


def _file_changed(path: Path, row: dict[str, Any]) -> str:
    try:
        about = path.stat()
        if about.st_size == row["size"] and about.st_mtime_ns == row["mtime_ns"]:
            return ""
        if about.st_size != row["size"] or files.sha256_file(path) != row["sha256"]:
            return f"{path} changed"
    except (OSError, UserError) as error:
        return f"{path}: {getattr(error, 'message', error)}"
    return ""
