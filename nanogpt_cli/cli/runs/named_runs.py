"""The runs that a command reads, by name or folder: ours, and those in event files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt_cli import shell, units
from nanogpt_cli.cli import console
from nanogpt_cli.errors import UserError
from nanogpt_cli.run.folder import RunFolder, find_run, list_runs

if TYPE_CHECKING:
    from nanogpt_cli.run.converted import Converted

_LARGE = 10_000_000  # bytes; more takes seconds


@dataclass
class Found:
    """Runs to read.

    Attributes:
        runs: each once, in the order of their names; those of event files, the newest first.
        converted: folders of event files among the names.
    """

    runs: list[RunFolder] = field(default_factory=list)
    converted: list[Converted] = field(default_factory=list)

    def follow(self) -> None:
        """Let the runs of event files grow as the files do, until the program ends."""
        for source in self.converted:
            source.follow()


def find(names: Sequence[str], root: Path, copies: Mapping[str, Path] | None = None) -> Found:
    """The runs of these names or folders; the newest run where none is named.

    Args:
        names: of runs.
        root: the folder of runs.
        copies: of runs on other machines, by name.

    Raises:
        UserError: there is no such run, or TensorBoard's reader is not installed.
    """
    found = Found()
    for name in names:
        if copies and name in copies:
            found.runs.append(RunFolder(copies[name]))
        elif source := _converted(Path(name), root):
            found.converted.append(source)
            found.runs += source.runs
        else:
            found.runs.append(find_run(name, root))
    if not names:
        found.runs.append(find_run(None, root))
    found.runs = list({run.path.resolve(): run for run in found.runs}.values())
    return found


def next_command(found: Found) -> str:
    """What to type next about runs of event files; "" for runs of our own."""
    roots = [source.root for source in found.converted]
    return shell.command("runs", "plot", *roots, "--svg", "runs.svg") if roots else ""


def _converted(path: Path, root: Path) -> Converted | None:
    """The runs in the event files below a path; ``None`` if it is a run of ours or holds some."""
    ours = (RunFolder(path), RunFolder(root / path))
    if any(run.is_run() for run in ours) or not path.exists() or list_runs(path):
        return None
    from nanogpt_cli.run import event_files
    from nanogpt_cli.run.converted import Converted

    logs = event_files.find(path)
    if not logs:
        return None
    size = sum(file.stat().st_size for paths in logs.values() for file in paths if file.is_file())
    if size > _LARGE:
        console.say(f"reading {units.si(size)}B of event files")
    source = Converted(path if path.is_dir() else path.parent, console.say)
    source.update()
    if not source.runs:
        raise UserError(f"{path} is being read by another nanogpt", "try again in a moment")
    return source
