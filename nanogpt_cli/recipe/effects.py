"""Keys of a recipe that have no effect because of another one, in sentences for the user."""

from __future__ import annotations

from collections.abc import Iterator

from nanogpt_cli.recipe.sections import Model, Recipe


def without_effect(recipe: Recipe) -> list[str]:
    """A sentence about each key that differs from its default and changes nothing."""
    return list(_sentences(recipe))


def _sentences(recipe: Recipe) -> Iterator[str]:
    train, optim = recipe.train, recipe.optim
    if train.patience and not train.eval_every:
        yield (
            f"train.patience = {train.patience} has no effect: train.eval_every = 0 evaluates only "
            "at the end"
        )
    elif train.patience and train.max_steps // train.eval_every <= train.patience:
        yield (
            f"train.patience = {train.patience} has no effect: there are only "
            f"{train.max_steps // train.eval_every} evaluations, every {train.eval_every} of "
            f"{train.max_steps} steps"
        )
    if train.keep_every and not train.checkpoint_every and not train.eval_every:
        yield (
            f"train.keep_every = {train.keep_every} has no effect: train.checkpoint_every = 0 "
            "saves only at the end"
        )
    for name, needed, used in (
        ("muon_lr", 'optim.name = "muon"', optim.name == "muon"),
        ("momentum", 'optim.name = "muon"', optim.name == "muon"),
        ("ns_steps", 'optim.name = "muon"', optim.name == "muon"),
        ("decay_fraction", 'optim.schedule = "wsd"', optim.schedule == "wsd"),
        ("decay_shape", 'optim.schedule = "wsd"', optim.schedule == "wsd"),
    ):
        value = getattr(optim, name)
        if not used and value != type(optim).model_fields[name].default:
            yield f"optim.{name} = {value!r} has no effect without {needed}"
    theta = recipe.model.rope_theta
    if recipe.model.position != "rope" and theta != Model.model_fields["rope_theta"].default:
        yield f'model.rope_theta = {theta:g} has no effect without model.position = "rope"'
    if optim.min_lr and optim.schedule == "constant":
        yield f'optim.min_lr = {optim.min_lr:g} has no effect with optim.schedule = "constant"'
    if recipe.sample.every and not recipe.sample.max_new_tokens:
        yield (
            f"sample.every = {recipe.sample.every} has no effect: sample.max_new_tokens = 0 makes "
            "no samples"
        )
