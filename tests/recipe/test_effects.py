"""Keys that change nothing are named; keys that change something are not."""

from __future__ import annotations

from typing import Any

import pytest

from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.recipe.effects import without_effect


def sentences(**sections: dict[str, Any]) -> list[str]:
    return without_effect(recipe_files.from_values(sections))


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("train.patience", {"train": {"patience": 3, "eval_every": 0}}),
        ("train.patience", {"train": {"patience": 4, "eval_every": 250}}),
        ("train.keep_every", {"train": {"keep_every": 9, "eval_every": 0, "checkpoint_every": 0}}),
        ("optim.muon_lr", {"optim": {"muon_lr": 0.1}}),
        ("optim.momentum", {"optim": {"momentum": 0.9}}),
        ("optim.ns_steps", {"optim": {"ns_steps": 6}}),
        ("optim.decay_fraction", {"optim": {"decay_fraction": 0.5}}),
        ("optim.decay_shape", {"optim": {"decay_shape": "1-sqrt"}}),
        ("optim.min_lr", {"optim": {"min_lr": 1e-5, "schedule": "constant"}}),
        ("model.rope_theta", {"model": {"rope_theta": 5000.0}}),
        ("sample.every", {"sample": {"every": 5, "max_new_tokens": 0}}),
    ],
)
def test_a_key_without_effect_is_named(key: str, sections: dict[str, dict[str, Any]]) -> None:
    found = sentences(**sections)
    assert len(found) == 1
    assert found[0].startswith(f"{key} = ")
    assert "no effect" in found[0]


def test_keys_with_effect_are_not() -> None:
    assert sentences() == []
    assert sentences(train={"patience": 3, "max_steps": 1000, "eval_every": 100}) == []
    assert sentences(optim={"name": "muon", "muon_lr": 0.1, "momentum": 0.9, "ns_steps": 6}) == []
    assert sentences(optim={"schedule": "wsd", "decay_fraction": 0.5}) == []


@pytest.mark.parametrize("header", recipe_files.shipped(), ids=lambda header: header.name)
def test_every_key_of_a_shipped_recipe_has_an_effect(header: recipe_files.Header) -> None:
    assert recipe_files.load(header.name).notes == ()


def test_a_batch_that_does_not_fill_the_step_gets_sizes_that_do() -> None:
    from nanogpt_cli.errors import UserError

    for batch, near in ((3, 2), (5, 4), (7, 8), (100, 16)):
        sets = [f"train.batch_size={batch}", "train.tokens_per_step=512"]
        with pytest.raises(UserError, match=f"set train.batch_size = {near}, or") as refused:
            recipe_files.load("debug", sets)
        assert "--set: " in refused.value.message
        assert refused.value.hint == ""
        sets[0] = f"train.batch_size={near}"
        assert recipe_files.load("debug", sets).recipe.train.batch_size == near


def test_a_prompt_stays_with_its_data(tmp_path: Any) -> None:
    def prompt(*sets: str) -> str:
        return recipe_files.load("debug", sets).recipe.sample.prompt

    assert prompt() == "ROMEO:"
    assert prompt("data.name=shakespeare") == "ROMEO:"
    assert prompt("data.name=notes.txt") == ""
    assert prompt("data.name=notes.txt", "sample.prompt=Once") == "Once"
    child = tmp_path / "mine.toml"
    child.write_text('extends = "debug"\n[data]\nname = "notes.txt"\n')
    assert recipe_files.load(child).recipe.sample.prompt == ""
    child.write_text('extends = "debug"\n[data]\nname = "notes.txt"\n[sample]\nprompt = "ROMEO:"\n')
    assert recipe_files.load(child).recipe.sample.prompt == "ROMEO:"
    grandchild = tmp_path / "more.toml"
    grandchild.write_text('extends = "mine.toml"\n[train]\nmax_steps = 20\n')
    assert recipe_files.load(grandchild).recipe.sample.prompt == "ROMEO:"
