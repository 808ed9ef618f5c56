"""Workspace: the runs of a folder as a list that follows it: filtered, sorted, selected."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanogpt_cli import units
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import notes, query, removal
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.remote import status
from nanogpt_cli.tui.state.entries import Entry, recipe_keys

# Column -> its value for sorting, and whether the largest come first; None comes last.
SORTS: dict[str, tuple[Callable[[Entry], Any], bool]] = {
    "age": (lambda e: e.summary.began or None, True),
    "run": (lambda e: units.natural(e.name), False),
    "state": (lambda e: (not e.state.live, e.state.key != "error", e.state.word), False),
    "loss": (lambda e: e.summary.last_step.loss if e.summary.last_step else None, False),
    "best": (lambda e: e.summary.best, False),
    "tok/s": (lambda e: e.speed, True),
    "alarms": (lambda e: len(e.summary.alarms), True),
    "step": (lambda e: e.summary.step, True),
}
_PIECE = 1 << 20  # bytes of a log searched at once


class Workspace:
    """The runs below ``root``, or those given alone.

    Attributes:
        entries: all runs by absolute path.
        selected: paths of those chosen for Compare, in the order of their choice.
        current: path of the run under the cursor.
        sort: the column that orders the list; ``reverse`` turns it round.
        filter: the query that runs must match.
        show_hidden: whether hidden runs are listed too.
        busy: whether logs remain to be read or searched.
        problem: why the folder cannot be listed; empty if it can.
        visited: whether the list has been in front.
    """

    def __init__(
        self,
        root: Path,
        folders: Sequence[Path] = (),
        *,
        clock: Callable[[], float] = time.time,
        readonly: bool = False,
    ) -> None:
        self.root = root
        self.folders = tuple(folders)
        self.clock = clock
        self.readonly = readonly
        self.entries: dict[Path, Entry] = {}
        self.selected: list[Path] = []
        self.current: Path | None = None
        self.sort = "age"
        self.reverse = False
        self.filter = ""
        self.show_hidden = False
        self.busy = True
        self.problem = ""
        self.visited = False
        self._query = query.Query()
        self._known: dict[Path, Entry] = {}  # by path as listed

    def look(self, patience: float = 0.05) -> bool:
        """Follow the folder, and its logs for about ``patience`` seconds; whether it changed."""
        changed, now = self._list(), self.clock()
        deadline = time.monotonic() + patience  # of reading, which listing must not use up
        self.busy = False
        # What was never read comes first, so that the whole list stands there soon.
        for entry in sorted(self.entries.values(), key=lambda entry: entry.read):
            if time.monotonic() > deadline and not entry.read:
                self.busy = True
                break
            changed = entry.refresh(now) or changed
        for entry in self.entries.values():
            while entry.read and not entry.summary.complete:
                if time.monotonic() > deadline:
                    self.busy = True
                    return changed
                changed = entry.summary.search(_PIECE) or changed
        return changed

    def _list(self) -> bool:
        """Find new runs and forget those that are gone."""
        try:
            there = self.folders or _folders(self.root)
            self.problem = ""
        except OSError as error:
            there, self.problem = (), f"cannot list {self.root}: {error.strerror or error}"
        found: dict[Path, Entry] = {}
        for path in there:
            entry = self._known.get(path)
            if entry is None:
                entry = Entry(RunFolder(path)) if _is_run(path) else None
            elif self.folders and not path.is_dir():
                entry = None
            if entry is not None:
                found[path] = entry
        if found.keys() == self._known.keys():
            return False
        self._known = found
        # A link to a run that is listed too is the same run, by the name of its folder.
        links = sorted(found.items(), key=lambda item: not item[0].is_symlink())
        self.entries = {entry.path: entry for _, entry in links}
        self.selected = [path for path in self.selected if path in self.entries]
        return True

    def rows(self) -> list[Entry]:
        """The runs that are listed: pinned ones first, then in the order of the column."""
        now = self.clock()
        shown = [
            entry
            for entry in self.entries.values()
            if (self.show_hidden or not entry.notes.hidden) and self._holds(entry, now)
        ]
        value, descending = SORTS[self.sort]
        shown.sort(key=lambda entry: units.natural(entry.name))
        known = [entry for entry in shown if _is_known(value(entry))]
        unknown = [entry for entry in shown if not _is_known(value(entry))]
        known.sort(key=value, reverse=descending != self.reverse)
        return sorted([*known, *unknown], key=lambda entry: not entry.notes.pinned)

    def _holds(self, entry: Entry, now: float) -> bool:
        return not self._query.terms or self._query.holds(entry.values(now))

    def set_filter(self, text: str) -> None:
        """List only the runs that match a query.

        Raises:
            UserError: as ``parsed``.
        """
        self._query = self.parsed(text)
        self.filter = text.strip()

    def parsed(self, text: str) -> query.Query:
        """The query in a text.

        Raises:
            UserError: it is none, or asks for a field that no run has.
        """
        found = query.parse(text)
        found.check_fields(recipe_keys(self.entries.values()))
        return found

    def matching(self, text: str) -> int:
        """How many runs match a query; for what is being typed.

        Raises:
            UserError: as ``parsed``.
        """
        found, now = self.parsed(text), self.clock()
        return sum(found.holds(entry.values(now)) for entry in self.entries.values())

    def entry(self) -> Entry | None:
        """The run under the cursor, if it is listed; else the first one."""
        rows = self.rows()
        at = self._place(rows)
        return rows[at] if rows else None

    def _place(self, rows: Sequence[Entry]) -> int:
        return next((n for n, entry in enumerate(rows) if entry.path == self.current), 0)

    def move(self, step: int) -> None:
        """Move the cursor by rows."""
        rows = self.rows()
        if rows:
            self.current = rows[min(max(self._place(rows) + step, 0), len(rows) - 1)].path

    def next_sort(self, step: int) -> None:
        """Order the list by the next column."""
        names = list(SORTS)
        self.sort = names[(names.index(self.sort) + step) % len(names)]
        self.reverse = False

    def select(self, entry: Entry) -> bool:
        """Choose a run for Compare, or no longer; returns whether it is chosen now."""
        if entry.path in self.selected:
            self.selected.remove(entry.path)
            return False
        self.selected.append(entry.path)
        return True

    def change(self, entry: Entry, **changes: Any) -> None:
        """Write a run's notes; where that is not done, pins and the like hold while it is open.

        Raises:
            UserError: as ``notes.change``; or notes and tags would be written where they are not.
        """
        why_not = self.why_unwritten(entry)
        if not why_not:
            entry.notes = notes.change(entry.run, **changes)
            return
        if changes.keys() & {"note", "tags"}:
            raise UserError(why_not)
        entry.notes = replace(entry.notes, **changes)

    def why_unwritten(self, entry: Entry) -> str:
        """Why nothing is written to a run's folder; empty if it is."""
        if self.readonly:
            return "read-only: nothing is written to a run's folder"
        if status.is_copy(entry.run.path):
            return "a copy of a run on another machine: notes and tags lie there"
        return ""

    def delete(self, entry: Entry) -> None:
        """Delete a run that has ended.

        Raises:
            UserError: as ``removal.remove``, or the dashboard is read-only.
        """
        if self.readonly:
            raise UserError("read-only: nothing is deleted")
        rows = self.rows()
        at = self._place(rows)
        after = [*rows[at + 1 :], *reversed(rows[:at])]
        removal.remove(entry.run)
        self.current = after[0].path if after else None
        self._list()


def _is_known(value: Any) -> bool:
    """Whether a value has a place in an order; NaN has none."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _folders(root: Path) -> list[Path]:
    """Every folder below ``root``; none where there is no such folder."""
    try:
        with os.scandir(root) as found:
            return [Path(item.path) for item in found if _is_folder(item)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:
        return False


def _is_run(path: Path) -> bool:
    try:
        return RunFolder(path).is_run()
    except UserError:
        return False
