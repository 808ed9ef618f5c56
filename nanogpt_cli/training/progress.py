"""What a run must remember besides tensors, and how it is saved and restored."""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nanogpt_cli import files, foreign_files, shell
from nanogpt_cli.errors import UserError
from nanogpt_cli.machine import distributed
from nanogpt_cli.machine.environment import versions
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text import look, prepare, shelf
from nanogpt_cli.text import tokens as prepared
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training.checkpoints import checkpoint, retention
from nanogpt_cli.training.spec import RunSpec
from nanogpt_cli.training.stepper import Stepper


@dataclass
class Progress:
    """What a run must remember besides tensors; saved in every checkpoint."""

    step: int = 0
    tokens: int = 0
    lr_factor: float = 1.0
    best_step: int = -1
    best_loss: float = math.inf
    evals_without_best: int = 0
    evaluated_step: int = -1
    skip: set[int] = field(default_factory=set)
    begun_from: str = ""  # trained weights, as of ``events.RunStarted``

    def to_json(self) -> dict[str, Any]:
        """Strict JSON values."""
        best = None if math.isinf(self.best_loss) else self.best_loss
        return {**vars(self), "best_loss": best, "skip": sorted(self.skip)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        """The inverse of ``to_json``; keys it does not know are ignored."""
        known = {key: values[key] for key in vars(cls()) if key in values}
        best = known.get("best_loss")
        known["best_loss"] = math.inf if best is None else best
        return cls(**{**known, "skip": set(known.get("skip", ()))})


def save(run: RunFolder, stepper: Stepper, spec: RunSpec, progress: Progress) -> Path:
    """Write a checkpoint from which a run can go on bit by bit.

    Every rank must call it; what is split over ranks is written by all of them.

    Args:
        run: the folder it is written to.
        stepper: the run's tensors.
        spec: what the run is.
        progress: where it is.
    """
    recipe, data = spec.recipe, spec.data
    state = {
        "step": progress.step,
        "tokens": progress.tokens,
        "progress": progress.to_json(),
        "scaler": stepper.scaler.state_dict(),
        # Batches and dropout are functions of this seed and the step: no generator has a state.
        "seed": recipe.run.seed,
        "recipe": recipe.model_dump(mode="json"),
        "data": data_identity(data),
        "versions": versions(),
    }
    return checkpoint.save(
        run,
        stepper.model,
        state,
        tokenizer=data.tokenizer.to_json(),
        optimizer=stepper.optimizers.tensors(),
        average=stepper.average.values,
        group=stepper.group,
    )


def data_identity(data: TokenData) -> dict[str, Any]:
    """What makes a prepared data set the same one: its tokenizer and its token files."""
    manifest = data.manifest
    return {
        "folder": str(data.folder.absolute()),
        "manifest_sha256": files.sha256_file(data.folder / prepared.MANIFEST),
        "tokenizer": manifest.fingerprint,
        "train_sha256": manifest.train.sha256,
        "val_sha256": manifest.val.sha256,
    }


def restore(folder: Path, stepper: Stepper, data: TokenData) -> Progress:
    """Give ``stepper`` the tensors of a verified checkpoint; returns where the run was.

    Raises:
        UserError: the checkpoint belongs to other data or another model, or is not resumable.
    """
    state = checkpoint.read_state(folder)
    check_data(folder.parents[1], state.get("data", {}), data)
    optimizer = folder / checkpoint.OPTIMIZER
    if "progress" not in state or (state["step"] and not foreign_files.present(optimizer)):
        raise UserError(
            f"{folder} lacks the state of its optimizer or its progress, so it cannot be resumed "
            "exactly",
            f"begin a new run with its weights: {_begin_from(folder.parents[1])}",
        )
    copy_weights(stepper.model, folder / checkpoint.MODEL)
    if foreign_files.present(optimizer):
        try:
            stepper.optimizers.load_tensors(checkpoint.read_tensors(optimizer))
        except ValueError as error:
            raise UserError(f"{optimizer}: {error}") from None
    _restore_average(folder / checkpoint.EMA, stepper)
    stepper.scaler.load_state_dict(stepper.scaler.state_dict() | state.get("scaler", {}))
    return Progress.from_json(state["progress"])


def _restore_average(path: Path, stepper: Stepper) -> None:
    if foreign_files.present(path):
        tensors = checkpoint.read_tensors(path)
        checkpoint.check_fit(stepper.model, tensors, source=str(path))
        stepper.average.load(tensors)
    else:  # the run goes on with a new ``optim.ema``
        stepper.average.restart()


def data_folder(
    saved: Mapping[str, Any], data: Mapping[str, Any], report: Callable[[str], None]
) -> Path:
    """The folder of the set that a run was trained on, wherever it lies now.

    The text may have changed since: what the recipe asks for today is another set. It is taken only
    if the recipe's ``[data]`` was changed, or if no set has the run's tokens any more.

    Args:
        saved: of a checkpoint or an incident; empty if there is none.
        data: the recipe's table ``[data]`` now.
        report: as of ``text.prepare.ensure``.

    Raises:
        UserError: as ``text.prepare.ensure``.
    """
    then, made = saved.get("recipe", {}).get("data", {}), saved.get("data", {})
    changed = {key for key, value in data.items() if then.get(key, value) != value}
    if changed <= {"order"} and (found := shelf.same_tokens(made)):
        return Path(shell.path_word(found))  # for messages: relative below the current folder
    try:
        return prepare.ensure(data, report=report)
    except UserError as error:
        if changed or not made.get("folder"):
            raise
        raise UserError(
            f"the set that this was trained on, {made['folder']}, is gone or was replaced, and "
            f"cannot be prepared again: {error.message}",
            error.hint,
        ) from error


def newest_state(run: RunFolder) -> dict[str, Any]:
    """What the newest readable checkpoint of a run says; empty without any."""
    for step in reversed(retention.list_steps(run)):
        with contextlib.suppress(UserError):
            return checkpoint.read_state(checkpoint.folder_of(run, step))
    return {}


def other_data(saved: Mapping[str, Any], data: TokenData) -> str:
    """How a set differs from the one that a run was trained on, a sentence; "" if it does not.

    Args:
        saved: the run's ``data_identity``; keys that an earlier version did not write are not
            compared.
        data: the set.
    """
    now = data_identity(data)
    for key, word in (
        ("tokenizer", "another tokenizer"),
        ("train_sha256", "other training tokens"),
        ("val_sha256", "other validation tokens"),
    ):
        if key in saved and saved[key] != now[key]:
            before, after = str(saved[key])[:8], now[key][:8]
            if Path(str(saved.get("folder", ""))).absolute() != Path(now["folder"]):
                return (
                    f"{now['folder']} has {word} ({after}) than {saved.get('folder')} had "
                    f"({before})"
                )
            seconds = look.written(data.folder) / 1e9
            when = datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
            return (
                f"{now['folder']} was prepared again, on {when}, and has {word} ({after}) than "
                f"before ({before})"
            )
    return ""


def check_data(run: Path, saved: Mapping[str, Any], data: TokenData) -> None:
    """Refuse data that is not what a run was trained on.

    Args:
        run: the run's folder.
        saved: the ``data_identity`` in a checkpoint or an incident of it.
        data: what would be trained on now.

    Raises:
        UserError: the tokenizer or the tokens differ.
    """
    if difference := other_data(saved, data):
        words = shell.setting("data.name", shell.path_word(data.folder))
        words += ["--new-tokens"] if "another tokenizer" in difference else []
        raise UserError(
            f"{run} was trained on other data: {difference}",
            "put the text back as it was then, or begin a new run with its weights: "
            f"{_begin_from(run, words)}",
        )


def _begin_from(run: Path, more: Sequence[str] = ()) -> str:
    """The command that begins a run with the weights of another one."""
    return shell.hint("train", run / "recipe.toml", "--from", run, *more)


@torch.no_grad()
def copy_weights(model: GPT, path: Path) -> None:
    """Copy weights into the existing parameters, which the optimizers hold."""
    tensors = checkpoint.read_tensors(path)
    checkpoint.check_fit(model, tensors, source=str(path))
    for name, parameter in model.named_parameters():
        parameter.copy_(distributed.like(tensors[name], parameter))
