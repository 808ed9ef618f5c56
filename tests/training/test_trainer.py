from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy_run
from numerics import tolerance
from toy_run import losses, of_type, recipe, tensors

from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.commands import send_command
from nanogpt_cli.training import progress
from nanogpt_cli.training.checkpoints import checkpoint, retention
from nanogpt_cli.training.setup import assemble
from nanogpt_cli.training.spec import resolve
from nanogpt_cli.training.starting import Start
from nanogpt_cli.training.trainer import Trainer

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_one_large_micro_batch_equals_many_small_ones(tmp_path: Path, name: str) -> None:
    data = toy_run.data(tmp_path)
    runs = []
    for size in (8, 4, 1):
        trainer = Trainer(recipe(train={"batch_size": size}, optim={"name": name}), data)
        runs.append((losses(toy_run.run(trainer)), tensors(trainer)))
    # The loss and each gradient are means over the 128 tokens of a step.
    close = tolerance(128, max(runs[0][0].values()))
    for found, weights in runs[1:]:
        assert found == pytest.approx(runs[0][0], abs=close)
        for key, value in runs[0][1].items():
            # Adam's normalisation magnifies rounding where a gradient is nearly zero.
            assert (weights[key] - value).abs().max() < 2e-4, key


def test_the_logged_loss_is_the_mean_over_the_whole_step(tmp_path: Path) -> None:
    data, wanted = toy_run.data(tmp_path), recipe(train={"batch_size": 2})
    trainer = Trainer(wanted, data)
    x, y = trainer.stepper.batch(0, range(8))
    _, loss = trainer.model(x, y)
    assert loss is not None
    first = next(e for e in trainer.run() if isinstance(e, events.Step))
    assert first.loss == pytest.approx(float(loss.detach()), abs=1e-6)
    assert first.tokens == 128
    assert first.lr == pytest.approx(1e-2 / 4)


def test_gradient_norm_and_clipping(tmp_path: Path) -> None:
    trainer = Trainer(recipe(optim={"grad_clip": 0.1}), toy_run.data(tmp_path))
    stepper = trainer.stepper
    x, y = stepper.batch(0, range(8))
    _, loss = trainer.model(x, y)
    assert loss is not None
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 0.1)
    clipped = [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
    trainer.model.zero_grad(set_to_none=True)
    measured = stepper.measure(0)
    assert measured.clipped
    assert measured.grad_norm == pytest.approx(float(norm), rel=1e-5)
    stepper.optimizers.step = lambda: None  # type: ignore[method-assign]
    kept = [p.grad for p in trainer.model.parameters()]
    stepper.scaler.step = lambda part, n_parts: None  # type: ignore[assignment,method-assign]
    stepper.apply(measured)
    for ours, theirs in zip(kept, clipped, strict=True):
        assert ours is not None
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-8)


def test_a_run_learns_and_its_log_is_complete(tmp_path: Path) -> None:
    run = toy_run.folder(tmp_path / "run")
    wanted = recipe(train={"max_steps": 60, "eval_every": 20, "checkpoint_every": 30})
    found = toy_run.run(Trainer(wanted, toy_run.data(tmp_path), run))
    assert isinstance(found[0], events.RunStarted)
    assert isinstance(found[-1], events.RunEnded)
    assert found[-1].reason == "finished"
    evals = of_type(found, events.Eval)
    assert [e.step for e in evals] == [20, 40, 60]
    assert evals[-1].val_loss < evals[0].val_loss < math.log(20)
    assert evals[-1].bits_per_byte == pytest.approx(evals[-1].val_loss / math.log(2))
    assert [e.step for e in of_type(found, events.Checkpoint)] == [20, 30, 40, 60]
    assert retention.best_step(run) == 60
    assert found[-1].best_val_loss == evals[-1].val_loss
    assert all(e.time > 0 for e in found)


def test_saving_comes_before_evaluating(tmp_path: Path) -> None:
    run = toy_run.folder(tmp_path / "run")
    found = toy_run.run(Trainer(recipe(), toy_run.data(tmp_path), run))
    order = [type(e).__name__ for e in found if isinstance(e, events.Checkpoint | events.Eval)]
    assert order == ["Checkpoint", "Eval"] * 3


def poisoned(trainer: Trainer, step: int) -> None:
    """Make the loss of one step NaN."""
    measure = trainer.stepper.measure

    def broken(index: int, lr_factor: float = 1.0, *, control: bool = False) -> object:
        if index == step:
            parameter = next(trainer.model.parameters())
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.fill_(math.nan)
            measured = measure(index)
            with torch.no_grad():
                parameter.copy_(kept)
            return measured
        return measure(index)

    trainer.stepper.measure = broken  # type: ignore[method-assign,assignment]


def test_stop_on_a_non_finite_loss_leaves_the_weights_alone(tmp_path: Path) -> None:
    run, data = toy_run.folder(tmp_path / "run"), toy_run.data(tmp_path)
    clean = Trainer(recipe(), data)
    toy_run.run(clean, steps=6)
    trainer = Trainer(recipe(train={"on_nonfinite": "stop"}), data, run)
    poisoned(trainer, 6)
    found = toy_run.run(trainer)
    assert found[-1].reason == "non_finite"  # type: ignore[attr-defined]
    assert toy_run.differing(tensors(clean), tensors(trainer)) == []
    (incident,) = of_type(found, events.Incident)
    assert (incident.step, incident.kind, incident.action) == (7, "non_finite", "stop")
    assert "transformer.wte.weight" in incident.message
    folder = run.path / incident.path
    assert {p.name for p in folder.iterdir()} == {
        "model.safetensors", "events.jsonl", "incident.json",
    }  # fmt: skip
    assert retention.list_steps(run) == [4]


def test_skip_counts_the_step_without_an_update(tmp_path: Path) -> None:
    trainer = Trainer(recipe(train={"on_nonfinite": "skip"}), toy_run.data(tmp_path))
    poisoned(trainer, 6)
    found = toy_run.run(trainer)
    steps = of_type(found, events.Step)
    assert [e.step for e in steps if e.skipped] == [7]
    assert math.isnan(steps[6].loss)
    assert all(math.isfinite(e.loss) for e in steps if e.step != 7)
    assert all(torch.isfinite(t).all() for t in tensors(trainer).values())


@pytest.mark.parametrize("step", [6, 4])  # 4 is the step of a checkpoint itself
def test_rollback_returns_to_the_checkpoint_and_leaves_the_step_out(
    tmp_path: Path, step: int
) -> None:
    run, data = toy_run.folder(tmp_path / "run"), toy_run.data(tmp_path)
    trainer = Trainer(recipe(train={"on_nonfinite": "rollback"}), data, run)
    poisoned(trainer, step)
    found = toy_run.run(trainer)
    starts = [e.step for e in of_type(found, events.RunStarted)]
    assert starts == [0, 4]
    assert found[-1].reason == "finished"  # type: ignore[attr-defined]
    made = [e.step for e in of_type(found, events.Step)]
    assert made == [*range(1, step + 1), *range(5, 13)]

    skipping = Trainer(recipe(train={"on_nonfinite": "skip"}), data)
    poisoned(skipping, step)
    toy_run.run(skipping)
    assert toy_run.differing(tensors(skipping), tensors(trainer)) == []


def test_rollback_without_a_checkpoint_stops(tmp_path: Path) -> None:
    run = toy_run.folder(tmp_path / "run")
    trainer = Trainer(recipe(train={"on_nonfinite": "rollback"}), toy_run.data(tmp_path), run)
    poisoned(trainer, 1)
    found = toy_run.run(trainer)
    assert found[-1].reason == "non_finite"  # type: ignore[attr-defined]
    assert "there is no checkpoint to return to" in of_type(found, events.Note)[0].message


def test_skipping_gives_up_when_no_step_is_sound_and_survives_weights_of_nan(
    tmp_path: Path,
) -> None:
    wanted = recipe(
        train={"on_nonfinite": "skip", "max_steps": 40, "eval_every": 10}, stats={"every": 10}
    )
    trainer = Trainer(wanted, toy_run.data(tmp_path))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.fill_(math.nan)
    found = toy_run.run(trainer)
    assert [e.step for e in of_type(found, events.Eval)] == [10, 20]
    assert [e.skipped for e in of_type(found, events.Step)] == [True] * 20
    assert found[-1].reason == "non_finite"  # type: ignore[attr-defined]
    assert "20 steps in a row" in of_type(found, events.Note)[0].message


def test_rollback_gives_up_when_every_step_is_broken(tmp_path: Path) -> None:
    run = toy_run.folder(tmp_path / "run")
    wanted = recipe(train={"on_nonfinite": "rollback", "max_steps": 40})
    trainer = Trainer(wanted, toy_run.data(tmp_path), run)
    for step in range(5, 20):
        poisoned(trainer, step)
    found = toy_run.run(trainer)
    assert found[-1].reason == "non_finite"  # type: ignore[attr-defined]
    assert len(of_type(found, events.RunStarted)) == 6


def test_a_loss_spike_is_recorded_with_the_weights_that_made_it(tmp_path: Path) -> None:
    run = toy_run.folder(tmp_path / "run")
    wanted = recipe(train={"max_steps": 70, "eval_every": 0, "checkpoint_every": 0})
    trainer = Trainer(wanted, toy_run.data(tmp_path), run)
    measure = trainer.stepper.measure
    before: dict[str, torch.Tensor] = {}

    def spiking(index: int, lr_factor: float = 1.0, *, control: bool = False) -> object:
        measured = measure(index)
        if index == 65:
            weights = checkpoint.model_tensors(trainer.model)
            before.update({k: v.clone() for k, v in weights.items()})
            return replace(measured, loss=50.0)
        return measured

    trainer.stepper.measure = spiking  # type: ignore[method-assign,assignment]
    found = toy_run.run(trainer)
    (incident,) = of_type(found, events.Incident)
    assert (incident.step, incident.kind) == (66, "loss_spike")
    saved = checkpoint.read_tensors(run.path / incident.path / "model.safetensors")
    assert toy_run.differing(before, saved) == []
    assert "loss_spike" in [a.kind for a in of_type(found, events.Alarm)]
    assert found[-1].reason == "finished"  # type: ignore[attr-defined]


def test_early_stop_after_patience(tmp_path: Path) -> None:
    wanted = recipe(
        train={"max_steps": 200, "eval_every": 4, "patience": 2},
        optim={"lr": 1e-9, "min_lr": 0.0, "warmup_steps": 0, "schedule": "constant"},
    )
    trainer = Trainer(wanted, toy_run.data(tmp_path))
    evaluate = trainer.evaluations._note_result
    values = iter([3.0, 2.0, 2.5, 2.5, 1.0])
    trainer.evaluations._note_result = lambda step, loss: evaluate(step, next(values))  # type: ignore[method-assign]
    found = toy_run.run(trainer)
    assert found[-1].reason == "early_stop"  # type: ignore[attr-defined]
    assert found[-1].step == 16
    assert found[-1].best_val_loss == 2.0  # type: ignore[attr-defined]


def test_commands_are_obeyed_and_acknowledged(tmp_path: Path) -> None:
    run = toy_run.folder(tmp_path / "run")
    wanted = recipe(sample={"max_new_tokens": 5}, train={"max_steps": 50})
    trainer = Trainer(wanted, toy_run.data(tmp_path), run)
    for name, argument in [
        ("checkpoint", ""), ("eval", ""), ("sample", "the "), ("lr", "0.5"), ("lr", "zero"),
        ("lr", "-1"), ("pause", ""), ("resume", ""), ("stop", ""),
    ]:  # fmt: skip
        send_command(run, name, argument)
    found = toy_run.run(trainer)
    answers = [(c.name, c.result) for c in of_type(found, events.Command)]
    assert answers == [
        ("checkpoint", "done"), ("eval", "done"), ("sample", "done"),
        ("lr", "learning rate is now 0.5 times the recipe's"), ("lr", "not a number: zero"),
        ("lr", "not a usable factor: -1"), ("pause", "done"), ("resume", "done"),
        ("stop", "done"),
    ]  # fmt: skip
    assert of_type(found, events.Sample)[0].prompt == "the "
    assert found[-1].reason == "stopped"  # type: ignore[attr-defined]
    assert not list(run.control.iterdir())


def test_a_paused_run_can_be_stopped(tmp_path: Path) -> None:
    run = toy_run.folder(tmp_path / "run")
    asked = iter([False] * 4 + [True] * 10)
    trainer = Trainer(recipe(), toy_run.data(tmp_path), run, should_stop=lambda: next(asked, True))
    send_command(run, "pause")
    found = toy_run.run(trainer)
    assert found[-1].reason == "stopped"  # type: ignore[attr-defined]
    assert not of_type(found, events.Step)
    assert retention.list_steps(run) == [0]


def test_lr_command_scales_the_rest_and_survives_a_resume(tmp_path: Path) -> None:
    run, data = toy_run.folder(tmp_path / "run"), toy_run.data(tmp_path)
    send_command(run, "lr", "0.5")
    found = toy_run.run(Trainer(recipe(), data, run), steps=6)
    second = Trainer(recipe(), data, run, checkpoint=retention.find(run))
    rest = toy_run.run(second)
    plain = {e.step: e.lr for e in of_type(toy_run.run(Trainer(recipe(), data)), events.Step)}
    lrs = {e.step: e.lr for e in of_type(found + rest, events.Step)}
    assert lrs == pytest.approx({step: lr / 2 for step, lr in plain.items()})


def test_rehearsal_leaves_nothing_and_finds_a_disk_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = toy_run.folder(tmp_path / "run"), toy_run.data(tmp_path)
    trainer = Trainer(recipe(), data, run)
    next(e for e in trainer.run() if isinstance(e, events.Step))
    assert [p.name for p in run.path.iterdir() if p.name.startswith(".tmp")] == []

    def full(*arguments: object, **keys: object) -> Path:
        raise UserError("cannot save the checkpoint: the disk is full")

    monkeypatch.setattr(progress, "save", full)
    with pytest.raises(UserError, match="disk is full"):
        toy_run.run(Trainer(recipe(), data, run))


def test_a_prompt_the_vocabulary_lacks_costs_the_samples_not_the_run(tmp_path: Path) -> None:
    wanted = recipe(sample={"prompt": "Ωmega", "max_new_tokens": 4})
    found = toy_run.run(Trainer(wanted, toy_run.data(tmp_path)))
    notes = of_type(found, events.Note)
    assert notes
    assert "there will be no samples" in notes[0].message
    assert found[-1].reason == "finished"  # type: ignore[attr-defined]


def test_starting_from_weights_copies_them(tmp_path: Path) -> None:
    data = toy_run.data(tmp_path)
    source = Trainer(recipe(run={"seed": 99}), data)
    before = {k: v.clone() for k, v in source.model.state_dict().items()}
    trainer = Trainer(recipe(), data, start=Start(source.model))
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[key])
    toy_run.run(trainer, steps=2)
    assert all(torch.equal(v, before[k]) for k, v in source.model.state_dict().items())
    with pytest.raises(UserError, match=r"n_embd 16 \(recipe: 32\)"):
        Trainer(recipe(model={"n_embd": 32}), data, start=Start(source.model))


def test_too_short_data_is_refused_by_split(tmp_path: Path) -> None:
    data = toy_run.data(tmp_path)
    with pytest.raises(UserError, match="train split has"):
        Trainer(recipe(model={"block_size": 30000}, train={"tokens_per_step": 0}), data)


def test_compiled_training_agrees_and_saves_plain_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tracing front end alone: generating machine code would take minutes here."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    data, run = toy_run.data(tmp_path), toy_run.folder(tmp_path / "run")
    small = {"n_layer": 1}
    eager = losses(toy_run.run(Trainer(recipe(model=small, train={"max_steps": 3}), data)))
    wanted = recipe(model=small, train={"max_steps": 3, "compile": True})
    compiled = losses(toy_run.run(Trainer(wanted, data, run)))
    assert compiled == pytest.approx(eager, abs=1e-5)
    names = checkpoint.tensor_shapes(retention.find(run) / "model.safetensors")
    assert not [name for name in names if "_orig_mod" in name]


def test_a_compiler_that_fails_is_named_or_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanogpt_cli.machine import device

    def fail(loss: object, **_: object) -> object:
        def forward(*_: object, **__: object) -> None:
            raise RuntimeError("no compiler here\nmore")

        return forward

    monkeypatch.setattr(torch, "compile", fail)
    data = toy_run.data(tmp_path)
    with pytest.raises(UserError, match="compiling failed: RuntimeError: no compiler here"):
        Trainer(recipe(train={"compile": True}), data)
    monkeypatch.setattr(device, "_compile", lambda *_: True)  # as auto decides on a GPU
    found = toy_run.run(Trainer(recipe(), data))
    assert found[0].notes == ("not compiled: RuntimeError: no compiler here",)  # type: ignore[attr-defined]
    assert found[-1].reason == "finished"  # type: ignore[attr-defined]


def test_batches_fetched_ahead_are_the_batches_of_their_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: also when a step is left out or made again, its batch is its own."""
    spec = resolve(recipe(train={"parts": 1}), toy_run.data(tmp_path))
    plain, ahead = assemble(spec), assemble(spec)
    fetched: list[int] = []

    def look(step: int) -> None:
        fetched.append(step)
        slots = ahead._first_slots()
        ahead._ahead = (step, slots), ahead._fetch(step, slots)

    monkeypatch.setattr(ahead, "_look_ahead", look)
    for index in (0, 1, 1, 4, 2):
        assert ahead.step(index).loss == plain.step(index).loss
    assert fetched == [1, 2, 2, 5, 3]
