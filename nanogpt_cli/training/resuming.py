"""What may change when a run is resumed, and what may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nanogpt_cli import shell
from nanogpt_cli.errors import UserError
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.training.optim import lr_factor

# Without these the run would be another one. Of [model], dropout may change.
_FIXED = ("run.seed", "data.order", "optim.name")
# Names and numbers of the machine, which do not change what is learned. ``batch_size`` counts only
# through ``tokens_per_step``, and ``parts`` is taken over from the checkpoint.
_FREE = (
    "run.name",
    "data.name",
    "train.batch_size",
    "train.parts",
    "train.device",
    "train.compile",
)


def changes(
    state: Mapping[str, Any], recipe: Recipe, group: Group, *, source: Path | None
) -> list[str]:
    """Sentences about what the recipe of a resumed run changes.

    Args:
        state: of the checkpoint, with the recipe that made it and the step.
        recipe: of the resumed run.
        group: the processes that share its steps.
        source: the checkpoint's folder, for messages.

    Raises:
        UserError: the recipe describes another model, optimizer or order of the data.
    """
    saved = state.get("recipe")
    if not isinstance(saved, dict):
        raise UserError(
            f"{source} does not say which recipe made it",
            "begin a new run with its weights: train --from",
        )
    recipe = recipe.for_processes(group.world)
    pairs = list(_differing(saved, recipe.model_dump(mode="json")))
    refused = [text for key, text in pairs if _fixed(key)]
    if refused:
        raise UserError(
            f"the recipe is not the one that {source} was made with: {'; '.join(refused)}",
            "put the old values back, or begin a new run from its weights with --from",
        )
    notes = [f"changed since step {state.get('step', 0)}: {t}" for k, t in pairs if k not in _FREE]
    jump = _jump(saved, recipe, int(state.get("step", 0)))
    return [*notes, jump] if jump else notes


def _fixed(key: str) -> bool:
    section = key.partition(".")[0]
    return key in _FIXED or section == "init" or (section == "model" and key != "model.dropout")


def _differing(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, sentence) of each value that is not the saved one; keys the old recipe lacks are new
    in this version and have their defaults."""
    for section, values in now.items():
        before = saved.get(section)
        if section == "init":
            if isinstance(before, dict) and before != values:
                yield "init", "[init] is another scheme"
            continue
        if not isinstance(before, dict):
            continue
        for key, value in values.items():
            automatic = (section, key, value) == ("sample", "prompt", "")
            if key in before and before[key] != value and not automatic:
                yield f"{section}.{key}", f"{section}.{key} was {before[key]!r}, is now {value!r}"


def _jump(saved: Mapping[str, Any], recipe: Recipe, step: int) -> str:
    """A sentence when the schedule goes on at another learning rate than it would have."""
    try:
        before = Recipe.model_validate(saved)
    except ValueError:  # another version's; the keys it shares are compared all the same
        return ""
    rates = [
        r.optim.lr * lr_factor(step, r.optim, r.train.max_steps)
        for r in (before, recipe)
    ]  # fmt: skip
    if abs(rates[1] - rates[0]) <= 0.05 * max(rates):
        return ""
    if step >= before.train.max_steps:
        return (
            f"the learning rate had ended at {rates[0]:.2e}; with the longer schedule it goes on "
            f"at {rates[1]:.2e}"
        )
    return f"the learning rate of step {step + 1} would have been {rates[0]:.2e}, is {rates[1]:.2e}"


def how_to_go_on(folder: RunFolder | None, group: Group) -> str:
    """What to do after another process of a run was lost."""
    if folder is None or not any(folder.checkpoints.glob("step-*")):
        return "see what the other processes have said, and start the run again"
    more = ["--procs", group.world] if group.world > 1 else []
    go_on = shell.hint("train", folder.path, "--resume", *more)
    return f"resume from the last checkpoint: {go_on}"
