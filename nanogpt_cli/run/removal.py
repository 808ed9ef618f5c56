"""Deleting a run: never one that is being trained, never anything that is not a run."""

from __future__ import annotations

import time
from pathlib import Path

from nanogpt_cli import files, foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder, last_activity
from nanogpt_cli.run.process import process_alive
from nanogpt_cli.run.remote import status
from nanogpt_cli.run.summaries import Summary

# All that this program ever writes into a run folder; ``wandb`` and the like by its sinks.
PARTS = frozenset(
    ("recipe.toml", "events.jsonl", "notes.json", "checkpoints", "incidents", "control", "samples",
     "exports", "stdout.log", "lock", "metrics.csv", "tensorboard", "wandb", "tokenizer.json")
)  # fmt: skip
# Seconds for which a run of another computer, whose process cannot be seen, counts as alive.
UNSEEN = 3600.0


def check_removable(run: RunFolder, now: float | None = None) -> None:
    """Refuse to delete what is not a run that has ended.

    Args:
        run: the run.
        now: the time, in seconds since the epoch.

    Raises:
        UserError: it is a link or a copy, holds no event log, holds anything that is not part of a
            run, or is being trained.
    """
    path, name = run.path, f"{run.path} is not deleted"
    if path.is_symlink():
        raise UserError(f"{name}: it is a link to {path.readlink()}", "remove the link yourself")
    if status.is_copy(path):
        raise UserError(f"{name}: it is a copy of a run on another machine",
                        "`nanogpt cache clear mirrors` deletes all copies")  # fmt: skip
    if not path.is_dir() or not _has_log(run):
        raise UserError(f"{name}: it holds no event log, so it may not be a run",
                        "remove the folder yourself")  # fmt: skip
    for entry in foreign_files.entries(path):
        if entry.name not in PARTS and not entry.name.startswith(files.TEMPORARY_PREFIX):
            raise UserError(f"{name}: it holds {entry.name!r}, which is not part of a run",
                            "move that away first, or remove the folder yourself")  # fmt: skip
    if reason := _alive(run, time.time() if now is None else now):
        raise UserError(f"{name}: {reason}", "stop the training first")


def _has_log(run: RunFolder) -> bool:
    """Whether there is an event log of ours: a regular file of which a line can be read."""
    try:
        with foreign_files.opened(run.events) as file:
            data = file.read(1 << 16)
    except UserError:
        return False
    start, newline, _ = data.partition(b"\n")
    if not newline:  # a recipe as long as that is in no first line, or the log is empty
        return not data or data.startswith(b'{"type":"run_started"')
    try:
        return events.decode(start) is not None
    except ValueError:
        return data.startswith(b'{"type":')


def _alive(run: RunFolder, now: float) -> str:
    """Why the run counts as alive; "" if it has ended."""
    summary = Summary(run)
    summary.refresh()
    alive = process_alive(run, summary.started)
    if alive:
        return "it is being trained"
    recent = now - last_activity(run) < UNSEEN
    if alive is None and summary.started is not None and summary.ended is None and recent:
        return "another computer may be training it: its log is less than an hour old"
    return ""


def remove(run: RunFolder) -> None:
    """Delete a run that has ended; a crash leaves it whole or under a temporary name.

    Raises:
        UserError: as ``check_removable``, or the operating system refuses.
    """
    check_removable(run)
    path: Path = run.path

    def refuse() -> None:
        raise UserError(f"{path} is not deleted: it is being trained", "stop the training first")

    # With the lock in hand no trainer can resume the run between the check and the removal.
    with files.locked(run.lock, refuse), files.readable_os_errors("delete the run", path):
        files.remove_folder(path)
        if path.exists():
            raise UserError(f"{path} is not deleted: its folder cannot be renamed",
                            "check the permissions of the folder above it")  # fmt: skip
