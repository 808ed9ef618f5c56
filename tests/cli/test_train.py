"""``nanogpt train`` and its neighbours: signals, locks, folders, exit codes.

A program of its own is what gets a signal or loses its reader; all else runs in this process, which
has imported PyTorch already.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import programs
import pytest
import smallest
from programs import finish
from torch import Tensor
from typer.testing import CliRunner

from nanogpt_cli.cli import app
from nanogpt_cli.cli.train import jobs
from nanogpt_cli.errors import UserError
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.training import progress
from nanogpt_cli.training.optim import Optimizers
from nanogpt_cli.training.trainer import Trainer

TEXT = "the king walked under the trees while rain fell on the stone and the queen slept\n" * 120
RECIPE = smallest.recipe(
    train={"max_steps": 6, "eval_every": 3, "checkpoint_every": 3},
    sample={"prompt": "the ", "max_new_tokens": 4},
)


Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text and a recipe, in which the test works."""
    (tmp_path / "toy.txt").write_text(TEXT)
    (tmp_path / "toy.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture
def nanogpt(place: Path, capfd: pytest.CaptureFixture[str]) -> Program:
    """The program in this process, in ``place``: (exit code, stdout, stderr)."""
    del place

    def call(*arguments: str) -> tuple[int, str, str]:
        code = programs.nanogpt(*arguments)
        return code, *capfd.readouterr()

    return call


def start(*arguments: str) -> subprocess.Popen[str]:
    return programs.start([sys.executable, "-m", "nanogpt_cli", *arguments], text=True)


def test_a_run_from_start_to_eval_and_a_second_one_beside_it(place: Path, nanogpt: Program) -> None:
    code, out, commentary = nanogpt("train", "toy.toml", "--json", "--set", 'log.sinks=["csv"]')
    assert code == 0, commentary
    facts = json.loads(out)
    assert (facts["run"], facts["step"], facts["reason"]) == ("runs/toy", 6, "finished")
    assert "next: nanogpt sample runs/toy" in commentary
    rows = (place / "runs" / "toy" / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("step,time,loss,val_loss")
    assert len(rows) == 1 + 6 + 2

    code, out, commentary = nanogpt("train", "toy.toml")
    assert (code, out.strip()) == (0, "runs/toy-2")
    assert "runs/toy exists" in commentary

    code, out, commentary = nanogpt("eval", "toy", "--checkpoint", "last", "--json")
    assert code == 0, commentary
    measured = json.loads(out)
    logged = [json.loads(line) for line in (place / "runs/toy/events.jsonl").open()]
    val = [e["val_loss"] for e in logged if e["type"] == "eval"][-1]
    assert measured["loss"] == pytest.approx(val, abs=1e-6)
    assert len(measured["by_position"]) == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    place: Path, nanogpt: Program, number: signal.Signals
) -> None:
    long = ["--set", "train.max_steps=1000000", "--set", "train.checkpoint_every=0"]
    process = start("train", "toy.toml", *long)
    run = RunFolder(place / "runs" / "toy")
    programs.until(
        lambda: run.events.exists() and b'"type":"step"' in run.events.read_bytes(), process
    )
    locked, _, refusal = nanogpt("train", "toy", "--resume")
    assert locked == 2
    assert "is being trained by another process" in refusal
    process.send_signal(number)
    _, commentary = finish(process)
    assert process.returncode == 130
    assert "next: nanogpt train runs/toy --resume" in commentary
    last = json.loads(run.events.read_text().splitlines()[-1])
    assert (last["type"], last["reason"]) == ("run_ended", "stopped")
    assert last["checkpoint"] == f"checkpoints/step-{last['step']:06d}"

    limit = f"train.max_steps={last['step'] + 2}"
    code, out, commentary = nanogpt("train", "toy", "--resume", "--json", "--set", limit)
    assert code == 0, commentary
    assert json.loads(out)["step"] == last["step"] + 2


def test_a_run_stopped_before_its_first_step_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Iterator[events.Event]:
        signal.raise_signal(signal.SIGINT)
        yield from ()

    monkeypatch.chdir(place)
    monkeypatch.setattr(Trainer, "_prepare", interrupted)
    assert programs.nanogpt("train", "toy.toml") == 130
    assert "stopped before the first step" in capsys.readouterr().err
    assert not [*(place / "runs").iterdir()]


def test_a_reader_that_leaves_does_not_end_the_run(place: Path) -> None:
    process = start("train", "toy.toml")
    assert process.stderr is not None
    process.stderr.close()
    process.stderr = None
    out, _ = finish(process)
    assert process.returncode == 0
    run = RunFolder(place / out.strip())
    last = json.loads(run.events.read_text().splitlines()[-1])
    assert (last["type"], last["reason"]) == ("run_ended", "finished")


def test_a_damaged_checkpoint_is_named_and_the_previous_one_taken(
    place: Path, nanogpt: Program
) -> None:
    assert nanogpt("train", "toy.toml")[0] == 0
    checkpoints = place / "runs" / "toy" / "checkpoints"
    os.truncate(checkpoints / "step-000006" / "model.safetensors", 100)
    code, _, commentary = nanogpt("train", "toy", "--resume", "--set", "train.max_steps=7")
    assert code == 0, commentary
    assert "step-000006/model.safetensors is damaged" in commentary
    assert "resuming from runs/toy/checkpoints/step-000003" in commentary
    assert (checkpoints / "damaged-step-000006").is_dir()


def test_verify_resume_passes_and_can_fail(
    nanogpt: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, commentary = nanogpt("verify-resume", "toy.toml", "--steps", "6")
    assert code == 0, commentary
    assert out.startswith("equal: ")
    load = Optimizers.load_tensors

    def lossy(optimizers: Optimizers, tensors: dict[str, Tensor]) -> None:
        load(optimizers, {k: v for k, v in tensors.items() if not k.endswith("exp_avg_sq")})
        for part in optimizers.members:
            for state in part.state.values():
                state["exp_avg_sq"] = state["exp_avg"] ** 2

    monkeypatch.setattr(Optimizers, "load_tensors", lossy)
    code, out, commentary = nanogpt("verify-resume", "toy.toml", "--steps", "6")
    assert code == 1, commentary
    assert out.startswith("differs: the loss of step 5")


def test_plan_and_lr_find(place: Path, nanogpt: Program) -> None:
    code, out, commentary = nanogpt("plan", "toy.toml", "--json", "--flops", "1e9")
    assert code == 0, commentary
    assert json.loads(out)["fits"] is True
    code, _, commentary = nanogpt("plan", "toy.toml", "--memory", "0.001")
    assert code == 1
    assert "does not fit" in commentary
    code, out, commentary = nanogpt(
        "plan", "gpt2-124m", "--flops", "4e14", "--memory", "80", "--json"
    )
    assert code == 0, commentary
    assert "fineweb is not prepared yet" in commentary
    assert json.loads(out)["estimate"] is None
    assert json.loads(out)["epochs"] == pytest.approx(
        json.loads(out)["tokens"]
        / (10e9 * (1 - recipe_files.load("gpt2-124m").recipe.data.val_fraction))
    )
    code, out, commentary = nanogpt("train", "toy.toml", "--lr-find", "--json")
    assert code == 0, commentary
    found = json.loads(out)
    assert 1e-5 < found["suggested"] < 10
    assert not (place / "runs").exists()


def test_plan_of_a_model_beyond_memory_and_disk_names_the_memory(
    place: Path, nanogpt: Program
) -> None:
    code, out, commentary = nanogpt(
        "plan", "toy.toml", "--set", "model.n_layer=20", "--set", "model.n_embd=65536"
    )
    assert code == 1
    assert " TB" in out
    assert "use a smaller model" in commentary
    assert "train.keep" not in commentary


def test_plan_estimates_gpus_that_are_not_there(nanogpt: Program) -> None:
    code, out, commentary = nanogpt("plan", "gpt2-124m", "--gpu", "h200", "--gpus", "8", "--json")
    assert code == 0, commentary
    found = json.loads(out)
    guess = found["estimate"]
    assert (guess["gpu"], guess["gpus"], found["available"]) == ("H200", 8, 141e9)
    assert sum(part["seconds"] for part in guess["parts"].values()) == pytest.approx(
        guess["step_seconds"]
    )
    assert guess["gpu_hours"] == pytest.approx(8 * found["seconds"] / 3600)
    code, out, commentary = nanogpt("plan", "gpt2-124m", "--gpu", "H200")
    assert code == 0, commentary
    assert out.count("estimated") == 5  # the time, the table, and what follows from it
    assert "MLP products" in out
    code, _, commentary = nanogpt("plan", "gpt2-124m", "--gpu", "RTX 3090")
    assert code == 1
    assert "does not fit: set train.batch_size = 32" in commentary
    refused = CliRunner().invoke(app, ("plan", "gpt2-124m", "--gpu", "H200", "--flops", "1e9"))
    assert isinstance(refused.exception, UserError)
    assert refused.exception.hint == "leave one of them out"


def test_bad_calls_are_one_line(nanogpt: Program) -> None:
    for arguments, words in [
        (["train"], "which recipe?"),
        (["train", "toy.toml", "--resume", "--from", "x"], "exclude each other"),
        (["train", "toy.toml", "--set", "model.vocab_size=3"], "smaller than the tokenizer's"),
        (["train", "toy.toml", "--set", 'log.sinks=["wandb"]'], "nanogpt-cli[wandb]"),
        (["train", "toy.toml", "--device", "meta"], "not a device to train on"),
        (["replay", "nothing"], "no run 'nothing'"),
    ]:
        code, out, commentary = nanogpt(*arguments)
        assert (code, out) == (2, ""), commentary
        assert words in commentary
        assert "Traceback" not in commentary
        # The data may take hours: what is known without it comes first.
        assert ("preparing" in commentary) == ("vocab_size" in str(arguments))


def test_a_restarted_job_goes_on_with_the_newest_run_or_none(tmp_path: Path) -> None:
    """An earlier run of the name, with checkpoints, is not mistaken for the job's own."""
    recipe = tmp_path / "toy.toml"
    recipe.write_text(RECIPE)
    out = tmp_path / "runs"
    for name, age, saved in (("toy", 20, True), ("toy-2", 10, False), ("toy-x", 0, True)):
        (out / name / "checkpoints").mkdir(parents=True)
        (out / name / "recipe.toml").write_text(RECIPE)
        os.utime(out / name / "recipe.toml", (1e9 - age, 1e9 - age))
        if saved:
            (out / name / "checkpoints" / "step-000003").mkdir()
    asked = jobs.Request(str(recipe), out=out)
    assert jobs.restarted(asked) is None
    (out / "toy-2" / "checkpoints" / "step-000003").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "data_folder", lambda *_: tmp_path)
        job = jobs.restarted(asked)
    assert job is not None
    assert (job.run.name, job.resume) == ("toy-2", True)
