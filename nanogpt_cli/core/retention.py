"""Which checkpoints a run has, which is best, and which go.

``checkpoints/best.json`` names the step with the lowest validation loss.
"""

from __future__ import annotations

import re
from pathlib import Path

from nanogpt_cli import files, foreign_files
from nanogpt_cli.core import checkpoint, limits
from nanogpt_cli.core.checkpoint import CheckpointError
from nanogpt_cli.errors import UserError
from nanogpt_cli.runlog import RunFolder

BEST = "best.json"
_STEP = re.compile(r"^step-(\d+)$")


def list_steps(run: RunFolder) -> list[int]:
    """Steps that have a checkpoint folder, ascending."""
    if not run.checkpoints.is_dir():
        return []
    found = (_STEP.match(path.name) for path in run.checkpoints.iterdir() if path.is_dir())
    return sorted(int(match.group(1)) for match in found if match)


def mark_best(run: RunFolder, step: int, val_loss: float) -> None:
    """Remember ``step`` as the best so far."""
    files.write_json(run.checkpoints / BEST, {"step": step, "val_loss": val_loss})


def best_step(run: RunFolder) -> int | None:
    """The step of the best checkpoint, if one is marked readably and still there."""
    try:
        step = _marked(run.checkpoints / BEST)
    except UserError:
        return None
    return step if step in list_steps(run) else None


def _marked(path: Path) -> int | None:
    """The step in ``best.json``, ``None`` without one.

    Raises:
        UserError: it cannot be read or names no step.
    """
    if not foreign_files.present(path):
        return None
    step = foreign_files.read_object(path).get("step")
    if not limits.is_whole(step):
        raise UserError(f"{path}: step must be a whole number, not {step!r:.80}")
    return step


def find(run: RunFolder, which: str = "last") -> Path:
    """The checkpoint folder ``which`` of a run: "last", "best" or a step number.

    Raises:
        CheckpointError: there is none; the message lists those there are.
    """
    steps = list_steps(run)
    if not steps:
        raise CheckpointError(
            f"run {run.name} has no checkpoint yet", "wait for its first save, or train longer"
        )
    if which == "last":
        return checkpoint.folder_of(run, steps[-1])
    if which == "best":
        try:
            best = _marked(run.checkpoints / BEST)
        except UserError as error:
            hint = f"remove it, or name a checkpoint: last, {', '.join(map(str, steps))}"
            raise CheckpointError(error.message, hint) from None
        return checkpoint.folder_of(run, best if best in steps else steps[-1])
    if which.isdigit() and int(which) in steps:
        return checkpoint.folder_of(run, int(which))
    there = ", ".join(str(step) for step in steps)
    raise CheckpointError(
        f"run {run.name} has no checkpoint {which!r}", f"there are: best, last, {there}"
    )


def newest_intact(run: RunFolder) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint that verifies; the newer ones and what is wrong with them."""
    problems: list[tuple[Path, str]] = []
    for step in reversed(list_steps(run)):
        folder = checkpoint.folder_of(run, step)
        try:
            checkpoint.verify(folder)
        except CheckpointError as error:
            problems.append((folder, error.message))
        else:
            return folder, problems
    return None, problems


def prune(run: RunFolder, *, keep: int, keep_every: int = 0) -> list[int]:
    """Remove old checkpoints; returns the removed steps.

    The newest ``keep``, the best one and each multiple of ``keep_every`` stay.
    """
    steps = list_steps(run)
    best = best_step(run)
    removed = []
    for step in steps[: max(0, len(steps) - max(keep, 1))]:
        if step == best or (keep_every and step % keep_every == 0):
            continue
        files.remove_folder(checkpoint.folder_of(run, step))
        removed.append(step)
    return removed


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint so that nothing takes it for one; returns its new path."""
    target = folder.with_name(f"damaged-{folder.name}")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"damaged-{folder.name}-{number}")
    folder.rename(target)
    return target
