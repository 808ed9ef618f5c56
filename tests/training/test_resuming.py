"""What a resumed run says of its changes, before its first step, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import smallest
from programs import nanogpt

from nanogpt_cli import shell
from nanogpt_cli.run import events
from nanogpt_cli.run.follow import EventReader

RECIPE = smallest.recipe(
    data={"tokenizer": "char"},
    train={"max_steps": 4, "checkpoint_every": 2},
    stats={"budget": 0},
    sample={"max_new_tokens": 3},
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.txt").write_text("The king slept under the trees.\n" * 60)
    (tmp_path / "toy.toml").write_text(RECIPE)
    assert nanogpt("train", "toy.toml") == 0
    return tmp_path


def test_every_change_and_the_jump_of_the_rate_are_said_before_the_first_step(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {
        "train.max_steps": "8", "optim.lr": "0.002", "model.dropout": "0.1",
        "train.patience": "3", "optim.grad_clip": "0.5",
    }  # fmt: skip
    sets = [word for key, value in changed.items() for word in ("--set", f"{key}={value}")]
    capsys.readouterr()
    assert nanogpt("train", "toy", "--resume", *sets) == 0
    said = capsys.readouterr().err
    assert "train.patience = 3 has no effect: train.eval_every = 0" in said
    log = EventReader(place / "runs" / "toy" / "events.jsonl").read_all()
    begun = max(i for i, event in enumerate(log) if isinstance(event, events.RunStarted))
    first = next(i for i, event in enumerate(log) if i > begun and isinstance(event, events.Step))
    notes = [event.message for event in log[begun:first] if isinstance(event, events.Note)]
    for key, value in changed.items():
        assert any(f"{key} was" in note and f"is now {value}" in note for note in notes), key
    assert any("the learning rate had ended at 0.00e+00" in note for note in notes)
    assert not any("sample.prompt" in note for note in notes)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["train.batch_size=8"], "set train.batch_size = 4, or train.tokens_per_step = 64"),
        (["run.seed=3"], "run.seed was 1337, is now 3"),
        (["optim.name=muon"], "optim.name was 'adamw', is now 'muon'"),
        (["model.n_layer=2"], "model.n_layer was 1, is now 2"),
    ],
)
def test_what_a_run_cannot_become_is_refused_and_nothing_is_changed(
    place: Path, capsys: pytest.CaptureFixture[str],
    sets: list[str], message: str,
) -> None:  # fmt: skip
    run = place / "runs" / "toy"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = [word for text in ["train.max_steps=8", *sets] for word in ("--set", text)]
    capsys.readouterr()
    assert nanogpt("train", "toy", "--resume", *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "another version" not in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_smaller_micro_batches_of_the_same_step_are_taken(
    place: Path,
) -> None:
    words = ("--set", "train.max_steps=6", "--set", "train.batch_size=2")
    assert nanogpt("train", "toy", "--resume", *words) == 0
    state = json.loads((place / "runs/toy/checkpoints/step-000006/state.json").read_text())
    assert state["recipe"]["train"]["batch_size"] == 2
    assert state["recipe"]["train"]["tokens_per_step"] == 32


def test_samples_begin_as_the_text_does(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = EventReader(place / "runs" / "toy" / "events.jsonl").read_all()
    prompts = {event.prompt for event in log if isinstance(event, events.Sample)}
    assert prompts == {"The"}  # four tokens, half the context, in whole words
    capsys.readouterr()
    assert nanogpt("sample", "toy", "-n", "3", "--seed", "1") == 0
    assert capsys.readouterr().out.startswith("The")


def test_an_evaluation_made_again_on_resuming_is_no_second_one_for_the_alarms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint comes before the evaluation of its step, which a resumed run repeats."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.txt").write_text("The king slept under the trees.\n" * 60)
    (tmp_path / "toy.toml").write_text(RECIPE)
    sets = ("train.eval_every=1", "train.checkpoint_every=1", "train.max_steps=3")
    assert nanogpt("train", "toy.toml", *shell.settings(sets)) == 0
    log = tmp_path / "runs" / "toy" / "events.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:  # two steps of a run that learns by heart, and the last one's evaluation
        if row["type"] == "eval":
            row["val_loss"] = 0.1 * row["step"]
        elif row["type"] == "step":
            row["loss"] = 9.0 - row["step"]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert nanogpt("train", "toy", "--resume", "--set", "train.max_steps=4") == 0
    found = EventReader(log).read_all()
    begun = max(i for i, event in enumerate(found) if isinstance(event, events.RunStarted))
    added = found[begun:]
    assert [event.step for event in added if isinstance(event, events.Eval)] == [3, 4]
    # Steps 1, 2 and 3 rose twice; with step 3 counted twice it would have been three times.
    assert not [event for event in added if isinstance(event, events.Alarm) and event.step == 3]
