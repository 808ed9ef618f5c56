"""The run folder, which holds everything that belongs to a run.

Trainer, dashboard, sampler and exporter communicate through this folder only::

    runs/NAME/recipe.toml                 resolved recipe
              events.jsonl                append-only log, see ``run/events.py``
              checkpoints/step-000500/    see ``training/checkpoints/checkpoint.py``
              incidents/step-000731/      flight recorder
              control/                    command files for a running trainer
              notes.json                    what its user says of it, see ``run/notes.py``
              samples/  exports/  stdout.log  lock
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from nanogpt_cli import foreign_files, shell, units
from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.places import RUNS
from nanogpt_cli.printable import printable

# Names that some file system cannot have: separators, Windows' special characters and devices.
_SPECIAL = re.compile(r'[<>:"/\\|?*]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# Bytes of UTF-8; file systems take 255, and a second run of the name gets a number.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    def own_recipe(self) -> Path:
        """The resolved recipe, where there is one.

        Raises:
            UserError: the run was trained by another program's loop.
        """
        if not foreign_files.present(self.recipe):
            raise UserError(
                f"run {self.name} holds no recipe.toml: another program has trained it",
                "go on with it in that program; here it can be watched",
            )
        return self.recipe

    @property
    def events(self) -> Path:
        """The append-only event log."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoint folders."""
        return self.path / "checkpoints"

    @property
    def incidents(self) -> Path:
        """The folder of incidents, which the flight recorder writes."""
        return self.path / "incidents"

    @property
    def control(self) -> Path:
        """The folder of command files for a running trainer."""
        return self.path / "control"

    @property
    def samples(self) -> Path:
        """Texts saved by ``nanogpt sample``."""
        return self.path / "samples"

    @property
    def exports(self) -> Path:
        """Default target of ``nanogpt export``."""
        return self.path / "exports"

    @property
    def notes(self) -> Path:
        """A note and tags of the user."""
        return self.path / "notes.json"

    @property
    def stdout(self) -> Path:
        """The output of a detached trainer."""
        return self.path / "stdout.log"

    @property
    def lock(self) -> Path:
        """Held by the trainer while it runs."""
        return self.path / "lock"

    def is_run(self) -> bool:
        """Whether this looks like a run: it has a recipe or an event log.

        Raises:
            UserError: the folder cannot be searched.
        """
        return foreign_files.present(self.recipe) or foreign_files.present(self.events)


def list_runs(root: Path = RUNS) -> list[RunFolder]:
    """All runs below ``root``, newest activity first; unreadable folders are skipped."""
    runs = [RunFolder(path) for path in foreign_files.entries(root) if path.is_dir()]
    return sorted(filter(_is_readable_run, runs), key=last_activity, reverse=True)


def _is_readable_run(run: RunFolder) -> bool:
    with contextlib.suppress(UserError):
        return run.is_run()
    return False


def last_activity(run: RunFolder) -> float:
    """When something was written to a run's log, else its recipe, in seconds since the epoch."""
    for path in (run.events, run.recipe):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0


def find_run(name: str | Path | None = None, root: Path = RUNS) -> RunFolder:
    """The run called ``name`` (a name below ``root`` or a path); the newest one when ``None``.

    Raises:
        UserError: there is no such run; the message lists the existing ones.
    """
    runs = list_runs(root)
    if name is None:
        if not runs:
            raise UserError(
                f"there is no run in {root}/",
                "train one first: `nanogpt train small`; if your runs are elsewhere, name their "
                "folder with --out",
            )
        return runs[0]
    for path in (Path(name), root / name):
        if RunFolder(path).is_run():
            return RunFolder(path)
    if held := list_runs(Path(name)):
        where = shell.quoted(shell.path_word(Path(name)))
        hint = f"it holds {units.counted(len(held), 'run')}: --out {where}"
        raise UserError(f"no run {str(name)!r}", hint)
    names = [run.name for run in runs]
    close = nearest(str(name), names)
    there = f"runs in {root}/: {', '.join(printable(name, '') for name in names[:10])}"
    if not names:
        there = f"there is none in {root}/; name the folder that holds it with --out"
    raise UserError(f"no run {str(name)!r}", f"did you mean {close!r}? {there}" if close else there)


def check_name(name: str, how: str = ": --set run.name=NAME") -> str:
    """Return ``name`` if it can be the name of a run: letters of any script, digits, spaces, ….

    Args:
        name: what was asked for.
        how: the end of the hint: how this command is given another name.

    Raises:
        UserError: it is not usable as a folder name; the message says why.
    """
    if problem := _unusable(name):
        raise UserError(
            f"run name {name!r:.80} is not usable as a folder name: {problem}",
            f"choose another name{how}",
        )
    return name


def _unusable(name: str) -> str:
    """Why a name cannot be that of a folder on every system; "" if it can."""
    if not name:
        return "it is empty"
    if not name.isprintable():  # nor are halves of surrogate pairs
        return "it holds characters that cannot be shown"
    if found := _SPECIAL.search(name):
        return f"it holds {found.group()!r}"
    if name[0] in ".-~ ":
        return f"it begins with {name[0]!r}"
    if name[-1] in ". ":
        return f"it ends with {name[-1]!r}"
    if _DEVICES.fullmatch(name):
        return "Windows has a device of that name"
    size = len(name.encode())
    return (
        f"it has {size} bytes, at most {_LONGEST_NAME} are possible" if size > _LONGEST_NAME else ""
    )


def fresh_run(name: str, root: Path = RUNS) -> RunFolder:
    """Create the first of the folders ``NAME``, ``NAME-2``, ``NAME-3``, … that does not exist.

    Raises:
        UserError: the name is not usable as a folder name.
    """
    check_name(name)
    root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = root / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
            return RunFolder(path)
        except FileExistsError:
            number += 1
