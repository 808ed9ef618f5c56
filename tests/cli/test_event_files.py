"""Folders of TensorBoard's event files through the commands and the dashboard."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from pathlib import Path

import pytest
from event_logs import write
from textual.widgets import Input
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "tui"))

import helpers

from nanogpt_cli.cli import app
from nanogpt_cli.errors import UserError
from nanogpt_cli.run.converted import Converted


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Two runs as the Trainer of Hugging Face writes them."""
    for seed in range(2):
        rows = [
            (s, {"train/loss": 1 + math.exp(-s / 50), "train/learning_rate": 0.5,
                 "train/epoch": s / 100 + seed})
            for s in range(10, 210, 10)
        ]  # fmt: skip
        rows += [(200, {"eval/loss": 1.25 + seed})]
        write(tmp_path / "logs" / f"run{seed}", rows)
    return tmp_path / "logs"


def run(*words: str | Path) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_watch_opens_all_runs_of_a_folder_to_compare(logs: Path) -> None:
    frame, said = run("watch", logs, "--once", "--size", "120x40")
    assert frame.startswith(" 2 runs  ")
    assert "1.2500" in frame
    assert "these logs hold no recipes" in frame
    assert said.strip() == f"next: nanogpt runs plot {logs} --svg runs.svg"
    told = [json.loads(line) for line in run("watch", logs, "--json")[0].splitlines()]
    assert {row["run"]: row["best_val_loss"] for row in told} == {"run0": 1.25, "run1": 2.25}
    assert all(row["lr"] == 0.5 and row["step"] == 200 and not row["problems"] for row in told)


def test_one_run_by_its_folder_or_file(logs: Path) -> None:
    (file,) = (logs / "run1").iterdir()
    for word in (logs / "run1", file):
        frame, _ = run("watch", word, "--once", "--page", "logs", "--size", "120x40")
        assert "loss is train/loss, val_loss is eval/loss" in frame
        assert frame.startswith(" run1  ")


def test_plot_and_csv_take_them_too(logs: Path) -> None:
    told, _ = run("runs", "plot", logs, "--metric", "train/epoch", "--json")
    curves = {curve["label"]: curve for curve in json.loads(told)["curves"]}
    assert set(curves) == {"run0", "run1"}
    assert curves["run1"]["mean"] == pytest.approx([s / 100 + 1 for s in range(10, 210, 10)])
    picture = logs / "a.svg"
    _, said = run("runs", "plot", logs, "--metric", "train/epoch", "--svg", picture)
    assert "train/epoch" in picture.read_text(encoding="utf-8")
    assert f"next: nanogpt watch {logs}" in said
    rows = list(csv.DictReader(io.StringIO(run("runs", "csv", logs / "run0")[0])))
    assert len(rows) == 21
    assert rows[-1]["val_loss"] == "1.25"
    for words, problem in (
        (["csv", logs], "holds 2 runs"),
        (["plot", logs, "--metric", "train/epocs", "--json"], "train/epoch"),
        (["plot", logs, "--metric", "train/epoch", "--x", "flop", "--json"], "--x flop"),
    ):
        result = CliRunner().invoke(app, ["runs", *map(str, words)])
        assert isinstance(result.exception, UserError)
        assert problem in f"{result.exception} {result.exception.hint}"


async def test_compare_turns_to_the_tags_and_begins_with_one(logs: Path) -> None:
    write(logs / "other", [(s, {"reward": float(s), "z": 1.0}) for s in range(5)])
    source = Converted(logs, print)
    source.update()
    folders = {folder.name: folder.path for folder in source.runs}
    hf = helpers.load(folders["run0"], folders["run1"])
    async with helpers.opened(hf, page="compare") as pilot:
        await helpers.press(pilot, *["right_square_bracket"] * 3)
        assert "─ train/epoch ─" in helpers.screen(pilot)
        assert "nothing to compare" not in helpers.screen(pilot)
        assert "run1 3.000" in helpers.screen(pilot)  # its last value
        await helpers.press(pilot, "right_square_bracket")
        assert "─ loss ─" in helpers.screen(pilot)
        await helpers.press(pilot, "m")
        pilot.app.screen.query_one(Input).value = "loss train/epoch"
        await helpers.press(pilot, "enter")
        assert "╭─ train/epoch ─" in helpers.screen(pilot)
        assert "nothing to compare" not in helpers.screen(pilot)
    async with helpers.opened(helpers.load(folders["other"]), page="compare") as pilot:
        assert "─ reward ─" in helpers.screen(pilot)
        await helpers.press(pilot, "1")
        assert "no loss in this log; Compare (3) shows its 2 metrics" in helpers.screen(pilot)


def test_what_is_neither_is_refused_as_before(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, ["watch", str(tmp_path / "empty"), "--once"])
    assert isinstance(result.exception, UserError)
    assert "no run" in str(result.exception)


def test_why_reads_event_files_and_says_which_run_it_explains(tmp_path: Path) -> None:
    for seed in range(2):
        rows = [(s, {"train/loss": math.nan if s > 150 else 3.0}) for s in range(10, 210, 10)]
        write(tmp_path / "logs" / f"run{seed}", rows)
    out, said = run("why", tmp_path / "logs")
    assert "a value that is not finite at step 160" in " ".join(out.split())
    assert "the newest of 2 runs" in said
    out, said = run("why", tmp_path / "logs" / "run0", "160")
    assert "a value that is not finite at step 160" in " ".join(out.split())
    with pytest.raises(UserError) as refused:  # a step between two that were logged
        run("why", tmp_path / "logs" / "run0", "84")
    assert "such as 80" in (refused.value.hint or "")
