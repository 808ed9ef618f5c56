"""Weights meet tokens: only with the same tokenizer, or with new token embeddings."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import smallest
import torch
import toy_run
from programs import nanogpt
from toy_run import recipe

from nanogpt_cli import files
from nanogpt_cli.errors import UserError
from nanogpt_cli.init import drawing
from nanogpt_cli.model.parameters import TOKEN_TABLES
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run import events
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.text import prepare, tokens
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training import progress, spec
from nanogpt_cli.training.starting import Start
from nanogpt_cli.training.studies import lr_find
from nanogpt_cli.training.trainer import Trainer

ALPHABETS = {"a": "abcdefgh \n", "b": "stuvwxyz \n", "c": "stuvwxyz! \n", "d": "abcdef \n"}
RECIPE = smallest.recipe(data={"name": "a.txt"})


def write_text(folder: Path, name: str) -> Path:
    letters = ALPHABETS[name]
    path = folder / f"{name}.txt"
    path.write_text("".join(random.Random(0).choices(letters, k=4000)))
    return path


def set_of(folder: Path, name: str, kind: str = "char", **request: Any) -> TokenData:
    source = write_text(folder, name)
    wanted = prepare.Request((str(source),), tokenizer=kind, **request)
    return tokens.open_data(prepare.prepare(wanted, out=folder / f"{name}-{kind}").folder)


def start(data: TokenData, **more: Any) -> Start:
    return Start(Trainer(recipe(), data).model, data.tokenizer, "run toy", "runs/toy", **more)


@pytest.mark.parametrize("other", ["b", "c", "d"])
def test_another_alphabet_is_refused_with_the_right_way(tmp_path: Path, other: str) -> None:
    first, second = set_of(tmp_path, "a"), set_of(tmp_path, other)
    with pytest.raises(UserError, match="another tokenizer") as refused:
        Trainer(recipe(), second, start=start(first))
    way = "-t runs/toy`" if other == "d" else "no token for the text's"
    assert way in refused.value.hint
    assert "--new-tokens" in refused.value.hint
    assert "model.vocab_size" not in str(refused.value)
    with pytest.raises(UserError, match="another tokenizer"):
        next(iter(lr_find.sweep(recipe(), second, start(first))))


def test_the_hint_keeps_the_options_of_the_set(tmp_path: Path) -> None:
    first = set_of(tmp_path, "a")
    second = set_of(tmp_path, "b", "byte", val_fraction=0.2, eot=True, limit=9, encoding="latin-1")
    with pytest.raises(UserError) as refused:
        Trainer(recipe(), second, start=start(first))
    for option in ("--val-fraction 0.2", "--eot", "--limit 9", "--encoding latin-1"):
        assert option in refused.value.hint
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UserError) as refused:
        Trainer(recipe(), second, start=start(first))
    assert "`" not in refused.value.hint  # there is no text to prepare


def test_the_same_tokenizer_on_another_text_is_taken(tmp_path: Path) -> None:
    first = set_of(tmp_path, "a", "byte")
    trainer = Trainer(recipe(), set_of(tmp_path, "b", "byte"), start=start(first))
    assert toy_run.run(trainer, steps=1)


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_are_drawn_and_the_rest_is_copied(tmp_path: Path, tied: bool) -> None:
    first, second = set_of(tmp_path, "a"), set_of(tmp_path, "c")
    wanted = recipe(model={"tied": tied})
    source = Trainer(recipe(run={"seed": 99}, model={"tied": tied}), first).model
    begun = Start(source, first.tokenizer, "run toy", new_tokens=True)
    trainer = Trainer(wanted, second, start=begun)
    assert "the embeddings of 11 tokens begin anew" in trainer.notes[0]
    resolved = spec.resolve(wanted, second)
    fresh = drawing.build(resolved.config, resolved.scheme, wanted.run.seed).state_dict()
    old = source.state_dict()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, (fresh if name in TOKEN_TABLES else old)[name]), name
    losses = toy_run.losses(toy_run.run(trainer))
    assert losses[12] < losses[1]


def test_unknown_tokenizers_are_said_and_shapes_named_as_settings(tmp_path: Path) -> None:
    data = set_of(tmp_path, "a")
    known = start(data)
    trainer = Trainer(recipe(), data, start=Start(known.model, None, "model.bin"))
    assert "nothing says which tokenizer model.bin" in trainer.notes[0]
    with pytest.raises(UserError, match=r"n_embd 16 \(recipe: 32\)") as refused:
        Trainer(recipe(model={"n_embd": 32}), data, start=known)
    assert refused.value.hint.endswith("--set model.n_embd=16")


def test_every_command_that_joins_weights_and_tokens_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ALPHABETS:
        set_of(tmp_path, name)
    (tmp_path / "r.toml").write_text(RECIPE)
    assert nanogpt("train", "r.toml", "--set", "data.name=a-char") == 0
    capsys.readouterr()
    others = ("--set", "data.name=b-char")
    for words in (
        ("train", "r.toml", "--from", "r", *others),
        ("train", "r.toml", "--from", "r", *others, "--lr-find"),
        ("train", "r", "--resume", *others, "--set", "train.max_steps=4"),
        ("eval", "r", "--data", "b-char"),
        ("import", "hf", "--data", "b-char", "--name", "other"),
    ):
        if words[0] == "import":
            assert nanogpt("export", "r", "--to", "hf", "--no-verify",
                               "--out", ".") == 0  # fmt: skip
            capsys.readouterr()
        before = sorted(path.name for path in (tmp_path / "runs").iterdir())
        assert nanogpt(*words) == 2, words
        said = capsys.readouterr().err
        assert "another tokenizer" in said, words
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == before
    words = ("train", "r.toml", "--from", "r", *others, "--new-tokens", "--json")
    assert nanogpt(*words) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["reason"] == "finished"
    assert "begin anew" in out.err


def test_the_log_tells_the_weights_a_run_began_with_after_a_resume_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    set_of(tmp_path, "a")
    (tmp_path / "r.toml").write_text(RECIPE)
    here = ("--set", "data.name=a-char")
    assert nanogpt("train", "r.toml", *here) == 0
    assert nanogpt("train", "r.toml", *here, "--from", "r", "--set", "run.name=tuned") == 0
    assert nanogpt("train", "tuned", "--resume", "--set", "train.max_steps=4") == 0
    log = EventReader(tmp_path / "runs" / "tuned" / "events.jsonl").read_all()
    sessions = [event for event in log if isinstance(event, events.RunStarted)]
    assert [(s.step, s.begun_from, s.expected) for s in sessions] == [
        (0, "run r, step 2 (best)", {}), (2, "run r, step 2 (best)", {}),
    ]  # fmt: skip
    capsys.readouterr()
    assert nanogpt("runs", "diff", "r", "tuned", "--json") == 0
    told = json.loads(capsys.readouterr().out)["values"]["begun_from"]
    assert told == ["", "run r, step 2 (best)"]
    assert nanogpt("why", "tuned", "3") == 0
    assert "began with other weights" not in capsys.readouterr().out  # the checkpoint has them
    shutil.rmtree(tmp_path / "runs" / "tuned" / "checkpoints")
    assert nanogpt("why", "tuned", "3") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "it began with other weights, which are not kept: run r, step 2 (best)" in said


def test_an_incident_is_replayed_with_its_own_data_only(tmp_path: Path) -> None:
    from nanogpt_cli.training.studies import replay

    data = set_of(tmp_path, "a", "byte")
    run = toy_run.folder(tmp_path / "run")
    wanted = recipe()
    files.write_text(run.recipe, recipe_files.to_toml(wanted))
    trainer = Trainer(wanted, data, run)
    measured = trainer.stepper.measure(0)
    found = trainer.recorder.record(measured, "loss_spike", "recorded")
    assert found.path == "incidents/step-000001"
    assert replay.replay(run, data, 1).source == "incidents/step-000001"
    with pytest.raises(UserError, match="other training tokens"):
        replay.replay(run, set_of(tmp_path, "b", "byte"), 1)


def test_the_hint_of_a_resume_with_other_data_names_them(tmp_path: Path) -> None:
    first, second = set_of(tmp_path, "a"), set_of(tmp_path, "b")
    saved = progress.data_identity(first)
    run = tmp_path / "runs" / "x y"
    progress.check_data(run, saved, first)
    with pytest.raises(UserError) as refused:
        progress.check_data(run, saved, second)
    assert "--new-tokens" in refused.value.hint
    assert f"--set data.name={second.folder}" in refused.value.hint
    shutil.rmtree(tmp_path / "b-char")
    same = set_of(tmp_path, "b", "byte")
    with pytest.raises(UserError, match="other training tokens") as refused:
        progress.check_data(run, progress.data_identity(set_of(tmp_path, "a", "byte")), same)
    assert "--new-tokens" not in refused.value.hint
