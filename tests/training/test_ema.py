from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import toy_run
from toy_run import of_type, recipe
from typer.testing import CliRunner

from nanogpt_cli.cli import app
from nanogpt_cli.interop import source as sources
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training import evaluate
from nanogpt_cli.training.checkpoints import checkpoint, retention
from nanogpt_cli.training.trainer import Trainer

NAME = "transformer.h.0.attn.c_attn.weight"


def averaged(**train: object) -> Recipe:
    return recipe(optim={"ema": 0.6}, train=train)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, TokenData, float]:
    """A finished run with averages, its data and its last validation loss."""
    folder = tmp_path_factory.mktemp("run")
    run, data = toy_run.folder(folder / "run"), toy_run.data(folder)
    found = toy_run.run(Trainer(averaged(), data, run))
    return run, data, of_type(found, events.Eval)[-1].val_loss


def test_the_average_is_the_sum_of_the_weights_of_each_step(tmp_path: Path) -> None:
    trainer = Trainer(averaged(), toy_run.data(tmp_path))
    parameter = dict(trainer.model.named_parameters())[NAME]
    expected = parameter.detach().double()
    for event in trainer.run():
        if isinstance(event, events.Step):
            decay = min(0.6, event.step / (event.step + 9))
            expected = decay * expected + (1 - decay) * parameter.detach().double()
    assert torch.allclose(trainer.stepper.average.values[NAME].double(), expected, atol=1e-7)
    assert not torch.allclose(parameter.detach().double(), expected, atol=1e-4)


def test_a_step_without_an_update_does_not_move_it(tmp_path: Path) -> None:
    trainer = Trainer(averaged(max_steps=5), toy_run.data(tmp_path))
    trainer.progress.skip = {4}
    found = {}
    for event in trainer.run():
        if isinstance(event, events.Step):
            found[event.step] = trainer.stepper.average.values[NAME].clone()
    assert not torch.equal(found[3], found[4])
    assert torch.equal(found[4], found[5])


def test_the_logged_loss_is_the_averages_and_training_goes_on_with_the_weights(
    tmp_path: Path, finished: tuple[RunFolder, TokenData, float]
) -> None:
    run, data, logged = finished
    plain = Trainer(recipe(), toy_run.data(tmp_path))
    toy_run.run(plain)
    folder = retention.find(run, "last")
    raw = checkpoint.load(folder, raw=True).model
    assert torch.equal(raw.state_dict()[NAME], plain.model.state_dict()[NAME])
    device = plain.stepper.device
    of_average = evaluate.evaluate(checkpoint.load(folder).model, data.val, device).loss
    assert of_average == logged
    assert evaluate.evaluate(raw, data.val, device).loss != logged


def test_eval_and_export_take_the_average_unless_told(
    finished: tuple[RunFolder, TokenData, float],
) -> None:
    run, _, logged = finished
    losses = []
    for more in ([], ["--raw"]):
        done = CliRunner().invoke(app, ["eval", str(retention.find(run)), "--json", *more])
        facts = json.loads(done.stdout)
        assert facts["model"].endswith(", averaged weights") == (not more)
        losses.append(facts["loss"])
    assert losses[0] == pytest.approx(logged, abs=1e-9)
    assert losses[1] != losses[0]
    folder = retention.find(run)
    for raw, name in ((False, checkpoint.EMA), (True, checkpoint.MODEL)):
        weights = sources.from_run(run, raw=raw).weights
        assert torch.equal(weights.get(NAME), checkpoint.read_tensors(folder / name)[NAME])


def test_a_run_that_goes_on_with_a_new_average_begins_it_at_its_weights(tmp_path: Path) -> None:
    run, data = toy_run.folder(tmp_path / "run"), toy_run.data(tmp_path)
    toy_run.run(Trainer(recipe(), data, run), steps=4)
    second = Trainer(averaged(), data, run, checkpoint=retention.find(run))
    parameter = dict(second.model.named_parameters())[NAME]
    assert torch.equal(second.stepper.average.values[NAME], parameter)
    toy_run.run(second)
    assert (retention.find(run, "last") / checkpoint.EMA).is_file()
