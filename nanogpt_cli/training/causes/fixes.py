"""What to type: the command that makes a change which cures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from nanogpt_cli import shell
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.training.causes import trials
from nanogpt_cli.training.causes.rerun import Rerun
from nanogpt_cli.training.causes.trials import Trial


@dataclass(frozen=True)
class Fix:
    """What to type.

    Attributes:
        words: of the command, without the program's name.
        changes: key -> (value now, value then).
        anew: the run is begun again; else it goes on from a checkpoint.
    """

    words: tuple[object, ...]
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    anew: bool = False


# What a resumed run cannot change.
_NEW_RUN = ("model.", "init.")


def propose(rerun: Rerun, trial: Trial, step: int, start: int) -> Fix:
    """The command that makes a change which cures, and the keys that it changes.

    Args:
        rerun: of the run.
        trial: the change.
        step: that is explained, from 1.
        start: step after which the trials began.
    """
    change, path, record = trial.change, rerun.run.path, rerun.record
    sets = list(change.sets)
    if change.factor is not None and any(after < start for after, _ in record.factors):
        # The checkpoint remembers the user's factor, so the recipe has to take it back.
        optim = rerun.recipe(step).optim
        sets.append(f"optim.lr={optim.lr / record.factor(step):.4g}")
    anew = trial.scratch or start == 0 or any(s.startswith(_NEW_RUN) for s in sets)
    words: list[object] = ["train", path / "recipe.toml" if anew else path]
    words += [] if anew else ["--resume", "--before", start + 1]
    words += [word for text in sets for word in ("--set", text)]
    words += [word for skipped in sorted(change.skip) for word in ("--skip-step", skipped)]
    now = rerun.recipe(step).model_dump(mode="json")
    then = rerun.recipe(step, dataclasses.replace(change, sets=tuple(sets))).model_dump(mode="json")
    given = {text.partition("=")[0] for text in sets}
    words += [word for key, value in _not_in_file(rerun.run, then) if key not in given
              for word in shell.setting(key, value)]  # fmt: skip
    return Fix(tuple(words), _changed(now, then), anew)


def _not_in_file(run: RunFolder, then: dict[str, Any]) -> list[tuple[str, Any]]:
    """What the command has to set because the recipe in the folder says otherwise.

    It was edited by hand, or a later resume changed it; what was tried had the values of the log.
    """
    in_file = recipe_files.load_resolved(run.recipe).model_dump(mode="json")
    found = [(key, value) for key, _, value in trials.differences(in_file, then)]
    # Only a number format that was asked for: auto is what the log has resolved.
    auto = in_file["train"]["precision"] == "auto"
    return [
        (key, value)
        for key, value in found
        if value is not None and not (auto and key == "train.precision")  # TOML has no null
    ]


def _changed(now: dict[str, Any], then: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    found = {}
    for section, values in now.items():
        for key in {**values, **then[section]}:
            old, new = values.get(key), then[section].get(key)
            if old != new:
                found[f"{section}.{key}"] = (old, new)
    return found
