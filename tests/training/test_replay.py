from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run
from toy_run import of_type, recipe

from nanogpt_cli import files
from nanogpt_cli.errors import UserError
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training.starting import Start
from nanogpt_cli.training.studies import replay
from nanogpt_cli.training.trainer import Trainer


def broken_run(
    tmp_path: Path, wanted: Recipe, harm: str, scale: float
) -> tuple[RunFolder, TokenData]:
    """A run whose weights are harmed after step 6, so that step 7 is not finite."""
    run, data = toy_run.folder(tmp_path / "run"), toy_run.data(tmp_path)
    files.write_text(run.recipe, recipe_files.to_toml(wanted))
    trainer = Trainer(wanted, data, run)
    found = []
    for event in trainer.run():
        found.append(event)
        if isinstance(event, events.Step) and event.step == 6:
            with torch.no_grad():
                trainer.model.get_parameter(harm).mul_(scale)
    assert found[-1].reason == "non_finite"  # type: ignore[attr-defined]
    (incident,) = of_type(found, events.Incident)
    assert incident.step == 7
    return run, data


def test_values_beyond_fp32_are_named_and_fp64_is_finite(tmp_path: Path) -> None:
    run, data = broken_run(tmp_path, recipe(), "transformer.h.1.mlp.c_fc.weight", 1e38)
    found = replay.replay(run, data, 7)
    assert found.source == "incidents/step-000007"
    first, fp32, fp64 = found.passes
    assert first.forward == fp32.forward != ""
    assert not first.finite
    assert fp64.forward == ""
    assert found.weights == []


def test_broken_weights_are_blamed_on_an_earlier_update(tmp_path: Path) -> None:
    run, data = broken_run(tmp_path, recipe(), "transformer.h.0.attn.c_attn.weight", math.nan)
    found = replay.replay(run, data, 7)
    assert found.weights == ["transformer.h.0.attn.c_attn.weight"]
    assert found.passes[0].forward == "query of layer 0"
    assert "before the step" in found.verdict
    assert len(found.windows) == 8  # every window is broken by itself


@pytest.mark.parametrize(
    ("step", "model"), [(1, {}), (3, {}), (7, {}), (12, {}), (7, toy_run.MODERN)]
)
def test_a_healthy_step_is_made_again_exactly(
    tmp_path: Path, step: int, model: dict[str, Any]
) -> None:
    wanted = recipe(model={"dropout": 0.2, **model}, optim={"name": "muon"})
    run, data = toy_run.folder(tmp_path / "run"), toy_run.data(tmp_path)
    files.write_text(run.recipe, recipe_files.to_toml(wanted))
    logged = {e.step: e for e in of_type(toy_run.run(Trainer(wanted, data, run)), events.Step)}
    found = replay.replay(run, data, step)
    assert found.passes[0].loss == pytest.approx(logged[step].loss, abs=1e-6)
    assert found.passes[0].grad_norm == pytest.approx(logged[step].grad_norm, rel=1e-4)
    assert found.passes[2].loss == pytest.approx(logged[step].loss, abs=1e-5)
    assert "finite when made again" in found.verdict


def test_weights_that_are_not_the_runs_are_refused(tmp_path: Path) -> None:
    data = toy_run.data(tmp_path)
    other = Trainer(recipe(run={"seed": 99}), data)
    toy_run.run(other)
    run, wanted = toy_run.folder(tmp_path / "run"), recipe(train={"checkpoint_every": 0})
    files.write_text(run.recipe, recipe_files.to_toml(wanted))
    with EventWriter(run.events) as write:
        for event in Trainer(wanted, data, start=Start(other.model)).run():
            write(event)
    with pytest.raises(UserError, match="these are not its weights"):
        replay.replay(run, data, 1)


def test_verdicts_name_the_cure() -> None:
    bad = replay.Pass("fp16 as the run", math.nan, math.nan, "attention output of layer 3", "", 6e4)
    good = replay.Pass("fp32, math attention", 2.0, 1.0, "", "", 7e4)
    verdict = replay._verdict([bad, good, good], [], [])
    assert verdict == (
        'attention output of layer 3 breaks in fp16 as the run; train.precision = "fp32" cures it'
    )
    assert "every number format" in replay._verdict([bad, bad, bad], [], [3])
