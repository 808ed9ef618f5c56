"""Which checkpoints a run has, which is best, and which go.

``checkpoints/best.json`` names the step with the lowest validation loss.
"""

from __future__ import annotations

from pathlib import Path

from nanogpt_cli import files, foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.model import limits
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.training.checkpoints import checkpoint
from nanogpt_cli.training.checkpoints.checkpoint import CheckpointError
from nanogpt_cli.user_input import whole

BEST = "best.json"


def list_steps(run: RunFolder) -> list[int]:
    """Steps that have a checkpoint folder, ascending."""
    folders = (path for path in foreign_files.entries(run.checkpoints) if path.is_dir())
    found = {path.name: whole(path.name.removeprefix("step-")) for path in folders}
    return sorted(
        step for name, step in found.items()
        if step is not None and name == checkpoint.folder_of(run, step).name
    )  # fmt: skip


def mark_best(run: RunFolder, step: int, val_loss: float) -> None:
    """Remember ``step`` as the best so far, and of which weights that was said."""
    mark = {"step": step, "val_loss": val_loss, "model_sha256": _weights_of(run, step)}
    files.write_json(run.checkpoints / BEST, mark)


def _weights_of(run: RunFolder, step: int) -> str | None:
    """The checksum of a checkpoint's weights, as its ``state.json`` has it."""
    state = checkpoint.read_state(checkpoint.folder_of(run, step))
    found: str | None = state.get("sha256", {}).get(checkpoint.MODEL)
    return found


def restore_mark(run: RunFolder, step: int, val_loss: float) -> None:
    """Make the mark agree with what a resumed run knows: a crash may have come before the mark.

    Args:
        run: the run.
        step: of its best evaluation, negative if there was none.
        val_loss: of that evaluation.
    """
    mark = run.checkpoints / BEST
    with files.readable_os_errors("write the mark of the best checkpoint", mark):
        if step >= 0 and (checkpoint.folder_of(run, step) / checkpoint.STATE).is_file():
            mark_best(run, step, val_loss)
        else:
            mark.unlink(missing_ok=True)


def check_mark(run: RunFolder) -> None:
    """Refuse a folder in the place of the mark; anything else there is replaced.

    Raises:
        UserError: there is one.
    """
    mark = run.checkpoints / BEST
    if mark.is_dir():
        raise UserError(
            f"{mark} is a folder, in the place of the mark of the best checkpoint",
            "move it away, or remove it",
        )


def best_step(run: RunFolder) -> int | None:
    """The step of the best checkpoint, if one is marked and still there.

    Raises:
        CheckpointError: the mark or that checkpoint is damaged, or the mark was made for a
            checkpoint of another run.
    """
    path = run.checkpoints / BEST
    if not foreign_files.present(path):
        return None
    try:
        mark = foreign_files.read_object(path)
    except UserError as error:
        raise _unusable(error.message) from None
    step = mark.get("step")
    if not limits.is_whole(step):
        raise _unusable(f"{path}: step must be a whole number, not {step!r:.80}")
    if step not in list_steps(run):
        return None
    if _weights_of(run, step) != mark.get("model_sha256"):
        raise _unusable(f"{path} was not made for this run's checkpoint of step {step}")
    return step


def is_best(run: RunFolder, step: int) -> bool:
    """Whether the checkpoint of ``step`` is known to be the best one."""
    try:
        return best_step(run) == step
    except CheckpointError:
        return False


def _unusable(why: str) -> CheckpointError:
    return CheckpointError(
        f"{why}; so the best checkpoint is not known",
        "name a step or --checkpoint last; resuming the run writes the mark again",
    )


def find(run: RunFolder, which: str = "last") -> Path:
    """The checkpoint folder ``which`` of a run: "last", "best" or a step number.

    Raises:
        CheckpointError: there is none; the message lists those there are.
    """
    steps = list_steps(run)
    if not steps:
        if foreign_files.present(run.events):
            run.own_recipe()
        raise CheckpointError(
            f"run {run.name} has no checkpoint yet", "wait for its first save, or train longer"
        )
    if which == "last":
        return checkpoint.folder_of(run, steps[-1])
    if which == "best":
        best = best_step(run)
        return checkpoint.folder_of(run, steps[-1] if best is None else best)
    if (step := whole(which)) is not None and step in steps:
        return checkpoint.folder_of(run, step)
    there = ", ".join(str(step) for step in steps)
    raise CheckpointError(
        f"run {run.name} has no checkpoint {which!r}", f"there are: best, last, {there}"
    )


def newest_intact(run: RunFolder, before: int = 0) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint that verifies; the newer ones and what is wrong with them.

    Args:
        run: the run.
        before: only checkpoints of earlier steps are looked at; 0: all.
    """
    problems: list[tuple[Path, str]] = []
    for step in reversed([s for s in list_steps(run) if not before or s < before]):
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
    try:
        best = best_step(run)
    except CheckpointError:
        return []  # which one must stay is not known
    removed = []
    for step in steps[: max(0, len(steps) - max(keep, 1))]:
        if step == best or (keep_every and step % keep_every == 0):
            continue
        files.remove_folder(checkpoint.folder_of(run, step))
        removed.append(step)
    return removed


def undo_after(run: RunFolder, step: int) -> list[Path]:
    """Set the checkpoints of later steps aside, for the run goes on from ``step`` anew."""
    later = [s for s in list_steps(run) if s > step]
    return [set_aside(checkpoint.folder_of(run, s), "undone") for s in later]


def set_aside(folder: Path, why: str = "damaged") -> Path:
    """Rename a checkpoint so that nothing takes it for one; returns its new path."""
    target = folder.with_name(f"{why}-{folder.name}")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{why}-{folder.name}-{number}")
    folder.rename(target)
    return target
