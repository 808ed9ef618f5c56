"""Stopping and going on gives the bits of a run that was never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import toy_run
from toy_run import differing, losses, of_type, recipe, tensors

from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.training.checkpoints import checkpoint, retention
from nanogpt_cli.training.trainer import Trainer

pytestmark = pytest.mark.numeric

CASES = {
    "adamw": {},
    "adamw, dropout": {"model": {"dropout": 0.2}},
    "muon, dropout": {"model": {"dropout": 0.2}, "optim": {"name": "muon"}},
    "averaged weights": {"optim": {"name": "muon", "ema": 0.9}},
    "random order": {"data": {"order": "random"}},
    "bf16": {"train": {"precision": "bf16"}},
    "fp16": {"train": {"precision": "fp16"}},
    "today's parts": {"model": toy_run.MODERN | {"dropout": 0.2}, "optim": {"ema": 0.9}},
    "today's parts, muon, bf16": {
        "model": toy_run.MODERN | {"bias": "qkv", "tied": False},
        "optim": {"name": "muon"},
        "train": {"precision": "bf16"},
    },
    "mup multipliers": {"model": {"init": "mup", "tied": False}},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop", [5, 8])
def test_stop_and_resume_equals_uninterrupted(tmp_path: Path, case: str, stop: int) -> None:
    data, wanted = toy_run.data(tmp_path), recipe(**CASES[case])
    straight = Trainer(wanted, data, toy_run.folder(tmp_path / "a"))
    whole = toy_run.run(straight)

    run = toy_run.folder(tmp_path / "b")
    first = toy_run.run(Trainer(wanted, data, run), steps=stop)
    assert of_type(first, events.RunEnded)[0].reason == "stopped"
    second = Trainer(wanted, data, run, checkpoint=retention.find(run, "last"))
    rest = toy_run.run(second)

    assert differing(tensors(straight), tensors(second)) == []
    assert losses(first) | losses(rest) == losses(whole)
    evals = [(e.step, e.val_loss) for e in of_type(whole, events.Eval)]
    again = {(e.step, e.val_loss) for e in of_type(first + rest, events.Eval)}
    assert again == set(evals)
    assert second.progress == straight.progress


def test_the_file_on_disk_is_what_was_in_memory(tmp_path: Path) -> None:
    run = toy_run.folder(tmp_path / "run")
    trainer = Trainer(recipe(optim={"name": "muon"}), toy_run.data(tmp_path), run)
    toy_run.run(trainer)
    folder = retention.find(run, "last")
    saved = {
        f"model.{k}": v for k, v in checkpoint.read_tensors(folder / "model.safetensors").items()
    }
    saved |= checkpoint.read_tensors(folder / "optimizer.safetensors")
    live = tensors(trainer)
    live.pop("model.lm_head.weight")  # tied
    assert differing(live, saved) == []
    kinds = {name.rpartition(".")[2] for name in saved}
    assert {"exp_avg", "exp_avg_sq", "step", "momentum_buffer"} <= kinds


def test_an_evaluation_that_was_cut_off_is_made_on_resuming(tmp_path: Path) -> None:
    """The checkpoint is saved before evaluating, so this is what a kill in between leaves."""
    data, run = toy_run.data(tmp_path), toy_run.folder(tmp_path / "run")
    trainer = Trainer(recipe(), data, run)
    for event in trainer.run():
        if isinstance(event, events.Checkpoint) and event.step == 4:
            break
    second = Trainer(recipe(), data, run, checkpoint=retention.find(run, "last"))
    steps = [e.step for e in of_type(toy_run.run(second), events.Eval)]
    assert steps == [4, 8, 12]


def test_same_seed_same_bits_and_other_seed_other_bits(tmp_path: Path) -> None:
    data = toy_run.data(tmp_path)
    runs = []
    for seed in (1, 1, 2):
        trainer = Trainer(recipe(run={"seed": seed}, model={"dropout": 0.1}), data)
        toy_run.run(trainer)
        runs.append(tensors(trainer))
    assert differing(runs[0], runs[1]) == []
    assert len(differing(runs[0], runs[2])) > 10


def test_statistics_and_samples_do_not_change_the_bits(tmp_path: Path) -> None:
    data = toy_run.data(tmp_path)
    plain = Trainer(recipe(model={"dropout": 0.1}), data)
    watched = Trainer(
        recipe(
            model={"dropout": 0.1},
            stats={"every": 1, "budget": 1.0},
            sample={"every": 2, "max_new_tokens": 5, "prompt": "the "},
            train={"eval_every": 1},
        ),
        data,
    )
    toy_run.run(plain)
    found = toy_run.run(watched)
    assert len(of_type(found, events.Sample)) == 6
    assert differing(tensors(plain), tensors(watched)) == []


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    run = toy_run.folder(tmp_path / "run")
    toy_run.run(Trainer(recipe(), toy_run.data(tmp_path), run))
    other = tmp_path / "other"
    other.mkdir()
    (other / "toy.txt").write_text(toy_run.text()[::-1], encoding="utf-8")
    with pytest.raises(UserError, match="other data"):
        Trainer(recipe(), toy_run.data(other), run, checkpoint=retention.find(run, "last"))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    run, data = toy_run.folder(tmp_path / "run"), toy_run.data(tmp_path)
    toy_run.run(Trainer(recipe(), data, run))
    wanted = recipe(model={"n_embd": 32})
    with pytest.raises(UserError, match="n_embd was 16, is now 32"):
        Trainer(wanted, data, run, checkpoint=retention.find(run, "last"))


def test_a_run_asked_to_stop_during_an_evaluation_stops_before_the_next_step(
    tmp_path: Path,
) -> None:
    run, data = toy_run.folder(tmp_path / "run"), toy_run.data(tmp_path)
    for due in (4, 12):  # in the middle, and the evaluation that ends the run
        newest = retention.find(run, "last") if due == 12 else None
        trainer = Trainer(recipe(train={"checkpoint_every": 5}), data, run, checkpoint=newest)
        asked = []

        def stop(trainer: Trainer = trainer, asked: list[bool] = asked, due: int = due) -> bool:
            return bool(asked) or trainer.progress.step == due

        trainer.evaluations.interrupted = stop
        trainer.should_stop = stop
        found = list(trainer.run())
        assert found[-1].reason == "stopped"  # type: ignore[attr-defined]
        assert found[-1].step == due  # type: ignore[attr-defined]
        assert due not in [e.step for e in of_type(found, events.Eval)]
    last = Trainer(
        recipe(train={"checkpoint_every": 5}), data, run, checkpoint=retention.find(run, "last")
    )
    found = list(last.run())
    assert [e.step for e in of_type(found, events.Eval)] == [12]
    assert found[-1].reason == "finished"  # type: ignore[attr-defined]


def test_a_second_resume_keeps_the_parts_the_run_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = toy_run.folder(tmp_path / "run"), toy_run.data(tmp_path)
    wanted = recipe(train={"max_steps": 6})
    monkeypatch.setattr("nanogpt_cli.machine.parts.side_by_side", lambda device: 2)
    toy_run.run(Trainer(wanted, data, run))
    monkeypatch.setattr("nanogpt_cli.machine.parts.side_by_side", lambda device: 4)
    for steps in (9, 12):
        trainer = Trainer(
            recipe(train={"max_steps": steps}), data, run, checkpoint=retention.find(run, "last")
        )
        assert trainer.stepper.n_parts == 2
        toy_run.run(trainer)
        state = checkpoint.read_state(retention.find(run, "last"))
        assert state["recipe"]["train"]["parts"] == 2
