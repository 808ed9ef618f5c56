"""``nanogpt runs`` over logs written by hand."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanogpt_cli import files
from nanogpt_cli.cli import app
from nanogpt_cli.cli.train import command
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.log import EventWriter

DEAD_PID = 2**22 + 1  # above the largest process id of Linux


def write(root: Path, name: str, lr: float, *, ended: str = "", pid: int = DEAD_PID) -> None:
    run = RunFolder(root / name)
    recipe = recipe_files.from_values({"run": {"name": name}, "optim": {"lr": lr}})
    files.write_text(run.recipe, recipe_files.to_toml(recipe))
    with EventWriter(run.events) as log:
        log(events.RunStarted(name=name, max_steps=4, pid=pid, host=platform.node(), time=1.8e9))
        for step in (1, 2):
            log(
                events.Step(
                    step=step, loss=3.0 - step * lr, lr=lr, grad_norm=1.0, tokens=step * 10,
                    tokens_per_s=100.0, time=1.8e9 + step,
                )
            )  # fmt: skip
            log(events.Eval(step=step, val_loss=3.5 - step, bits_per_byte=2.0, time=1.8e9 + step))
        if ended:
            log(events.RunEnded(step=2, reason=ended, time=1.8e9 + 3))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "done", 0.25, ended="finished")
    write(tmp_path, "dead", 0.5)
    write(tmp_path, "live", 0.5, pid=os.getpid())
    return tmp_path


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_list_tells_finished_running_and_crashed_apart(root: Path) -> None:
    rows = json.loads(invoke("runs", "--out", root, "--json"))["runs"]
    states = {row["run"]: row["state"] for row in rows}
    assert states == {"done": "finished", "dead": "crashed", "live": "running"}
    assert {row["best_val_loss"] for row in rows} == {1.5}
    table = invoke("runs", "--out", root)
    for word in ("done", "finished", "crashed", "running", "2/4", "1.5000"):
        assert word in table


def test_diff_shows_what_differs_beside_the_results(root: Path) -> None:
    found = json.loads(invoke("runs", "diff", "done", "dead", "--out", root, "--json"))
    assert found["runs"] == ["done", "dead"]
    values = found["values"]
    assert values["optim.lr"] == [0.25, 0.5]
    assert values["loss"] == [2.5, 2.0]
    assert values["state"] == ["finished", "crashed"]
    assert "optim.warmup_steps" not in values


def test_a_resumed_run_took_the_time_of_all_its_sessions(tmp_path: Path) -> None:
    """In the report of ``train`` as on the dashboard."""
    run = RunFolder(tmp_path / "twice")
    run.path.mkdir()
    with EventWriter(run.events) as log:
        for step, begun in ((0, 1.8e9), (2, 1.9e9)):
            log(events.RunStarted(name="twice", step=step, max_steps=4, time=begun))
            made = {"loss": 3.0, "lr": 0.1, "grad_norm": 1.0, "tokens": step, "tokens_per_s": 9.0}
            log(events.Step(step=step + 2, time=begun + 20, **made))
            ended = events.RunEnded(step=step + 2, reason="stopped", time=begun + 30, seconds=30.0)
            log(ended)
    assert command._facts(run, ended)["seconds"] == 60.0
    assert "took 1:00" in invoke("watch", "twice", "--out", tmp_path, "--once")


def test_csv_has_a_row_per_step_and_evaluation(root: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(invoke("runs", "csv", "done", "--out", root))))
    assert [(r["step"], r["loss"], r["val_loss"]) for r in rows] == [
        ("1", "2.75", ""), ("1", "", "2.5"), ("2", "2.5", ""), ("2", "", "1.5"),
    ]  # fmt: skip
