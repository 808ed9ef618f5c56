"""``nanogpt runs plot``: curves of runs, their means over seeds, and what cannot be drawn."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import programs
import pytest

from nanogpt_cli import places
from nanogpt_cli.cli import complete
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.training import stats

STEPS = 40


def nanogpt(*words: object) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = programs.nanogpt(*map(str, words))
    return code, out.getvalue(), err.getvalue()


def loss(lr: float, seed: int, step: int) -> float:
    return 4.0 - lr * step + 0.1 * seed


def write(root: Path, name: str, lr: float, seed: int, *, boom: bool = False) -> None:
    recipe = {"run": {"name": name, "seed": seed}, "optim": {"lr": lr}}
    with EventWriter(RunFolder(root / name).events) as log:
        log(events.RunStarted(name=name, recipe=recipe, time=1e9, n_layer=2,
                              expected={"resid_rms": [0.2, 0.3]}))  # fmt: skip
        for step in range(1, STEPS + 1):
            value = 1e30 if boom and step > 30 else loss(lr, seed, step)
            log(events.Step(step=step, loss=value, lr=lr, grad_norm=1.0, tokens=step * 10,
                            tokens_per_s=5.0, time=1e9 + 2 * step))  # fmt: skip
            if step % 10 == 0:
                log(events.Eval(step=step, val_loss=value + 0.5, time=1e9 + 2 * step))
            if step in (1, 20):
                row = [0.2 + seed / 100, 0.31 * step]
                log(events.Layers(step=step, stats={"resid_rms": row, "grad_norm": row}))
        log(events.RunEnded(step=STEPS, reason="diverged" if boom else "finished", time=1e9 + 99))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed in (1, 2, 4):
        write(tmp_path, f"slow-{seed}", 0.01, seed)
    write(tmp_path, "fast", 0.05, 1)
    write(tmp_path, "fast-boom", 0.05, 2, boom=True)
    return tmp_path


MUON = ("muon-1", "muon-2", "muon-3")
SLOW = ("slow-1", "slow-2", "slow-4")


def plot(root: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    code, out, err = nanogpt("runs", "plot", *arguments, "--out", root, "--json")
    assert code == 0, err
    return {curve["label"]: curve for curve in json.loads(out)["curves"]}


@pytest.mark.numeric
def test_runs_that_differ_in_the_seed_alone_are_one_line_with_a_band(root: Path) -> None:
    found = plot(root, *SLOW, "fast")
    assert list(found) == ["slow (3 seeds)", "fast"]
    slow = found["slow (3 seeds)"]
    assert slow["runs"] == list(SLOW)
    assert slow["x"] == [10, 20, 30, 40]
    values = [[loss(0.01, seed, int(step)) + 0.5 for seed in (1, 2, 4)] for step in slow["x"]]
    assert slow["mean"] == pytest.approx([statistics.mean(v) for v in values])
    assert slow["low"] == pytest.approx([min(v) for v in values])
    assert slow["high"] == pytest.approx([max(v) for v in values])
    spread = plot(root, *SLOW, "--band", "sd")["slow (3 seeds)"]
    wide = [h - m for h, m in zip(spread["high"], spread["mean"], strict=True)]
    assert wide == pytest.approx([statistics.stdev(v) for v in values])
    none = plot(root, *SLOW, "--band", "none")["slow (3 seeds)"]
    assert none["low"] == none["high"] == none["mean"]


def test_a_mean_covers_what_all_runs_reached_and_interpolates(root: Path) -> None:
    with EventWriter(RunFolder(root / "slow-5").events) as log:
        log(events.RunStarted(name="slow-5", recipe={"run": {"name": "slow-5", "seed": 5},
                                                     "optim": {"lr": 0.01}}))  # fmt: skip
        for step in (5, 15, 35):
            log(events.Eval(step=step, val_loss=float(step)))
    found = plot(root, "slow-1", "slow-5")["slow (2 seeds)"]
    assert found["x"] == [10, 20, 30]
    assert found["high"] == [10, 20, 30]


@pytest.mark.numeric
def test_axes_and_smoothing(root: Path) -> None:
    by = {axis: plot(root, "fast", "--metric", "loss", "--x", axis, "--smooth", "0")["fast"]
          for axis in ("step", "tokens", "time")}  # fmt: skip
    assert by["tokens"]["x"] == [10.0 * step for step in by["step"]["x"]]
    assert by["time"]["x"][-1] - by["time"]["x"][0] == 2 * (STEPS - 1)
    raw = by["step"]["mean"]
    assert raw == pytest.approx([loss(0.05, 1, step) for step in range(1, STEPS + 1)], rel=1e-6)
    moving, weight, expected = 0.0, 0.0, []
    for value in raw:
        moving, weight = 0.9 * moving + 0.1 * value, 0.9 * weight + 0.1
        expected.append(moving / weight)
    smooth = plot(root, "fast", "--metric", "loss")["fast"]["mean"]
    assert smooth == pytest.approx(expected, rel=1e-5)  # kept as float32


def test_statistics_of_layers_over_depth_and_over_time(root: Path) -> None:
    first = plot(root, *SLOW, "--metric", "resid_rms")["slow (3 seeds)"]
    assert first["steps"] == [1]
    assert first["x"] == [0, 1]
    assert first["mean"] == pytest.approx([0.2 + 7 / 300, 0.31], rel=1e-6)
    assert first["theory"] == [0.2, 0.3]
    later = plot(root, "fast", "--metric", "resid_rms", "--at", "17")["fast"]
    assert later["steps"] == [20]
    one = plot(root, "fast", "--metric", "resid_rms/1")["fast"]
    assert one["x"] == [1, 20]
    assert one["mean"] == pytest.approx([0.31, 6.2], rel=1e-6)
    assert one["theory"] == [0.3]
    assert plot(root, "fast", "--metric", "layers/grad_norm")["fast"]["x"] == [0, 1]
    assert len(plot(root, "fast", "--metric", "grad_norm")["fast"]["x"]) == STEPS


def texts(path: Path) -> str:
    return "\n".join(e.text or "" for e in ElementTree.fromstring(path.read_text()).iter())


def test_a_diverged_run_stands_alone_and_does_not_flatten_the_others(root: Path) -> None:
    picture, table = root / "p.svg", root / "p.csv"
    code, _, err = nanogpt("runs", "plot", "fast", "fast-boom", *SLOW, "--out", root,
                           "--svg", picture, "--csv", table)  # fmt: skip
    assert code == 0
    assert f"wrote {picture}" in err
    shown = texts(picture)
    for words in ("fast-boom (diverged)", "slow (3 seeds)", "from the lowest to the highest run",
                  "The y axis fits the runs that did not diverge", "validation loss"):  # fmt: skip
        assert words in shown
    assert "e2" not in shown.replace("between", "")  # no tick of 1e29
    rows = list(csv.DictReader(table.open()))
    assert {row["curve"] for row in rows} == {"fast", "fast-boom (diverged)", "slow (3 seeds)"}
    assert max(float(row["high"]) for row in rows) == 1e30


def test_theory_is_drawn_beside_the_first_measurement(root: Path) -> None:
    picture = root / "p.svg"
    nanogpt("runs", "plot", *SLOW, "--metric", "resid_rms", "--out", root, "--svg", picture)
    shown = texts(picture)
    for words in ("residual stream RMS by depth", "theory at the start", "Measured at step 1."):
        assert words in shown


def test_equal_names_are_told_apart_by_the_recipe(root: Path) -> None:
    for n, (lr, seed) in enumerate(((0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2))):
        write(root, "twin" + f"-{n + 1}" * bool(n), lr, seed)
    found = plot(root, "twin", "twin-2", "twin-3", "twin-4")
    assert list(found) == ["twin optim.lr=0.1 (2 seeds)", "twin optim.lr=0.2 (2 seeds)"]


def test_two_runs_of_one_seed_are_not_called_seeds(root: Path) -> None:
    write(root, "slow-1-again", 0.01, 1)
    assert list(plot(root, "slow-1", "slow-1-again")) == ["slow-1 (2 runs)"]


def test_a_step_that_was_not_finite_leaves_no_trace_in_the_mean(root: Path) -> None:
    with EventWriter(RunFolder(root / "nan").events) as log:
        log(events.RunStarted(name="nan"))
        for step in (1, 2, 3):
            value = float("nan") if step == 2 else 1.0
            log(events.Step(step=step, loss=value, lr=None, grad_norm=None, tokens=step,
                            tokens_per_s=None))  # fmt: skip
    curve = plot(root, "nan", "--metric", "loss")["nan"]
    assert (curve["x"], curve["mean"]) == ([1, 3], [1, 1])


def test_any_log_is_drawn_or_refused(root: Path) -> None:
    """Names and recipes of another program may hold anything."""
    folder = RunFolder(root / "odd")
    with EventWriter(folder.events) as log:
        log(events.RunStarted(name="<b>\x1b[31m", recipe={"a": [1, {"b": None}], "run": "x"},
                              expected={"dead": "none", "<i>": [None, 1.0]}))  # fmt: skip
        log(events.Layers(step=1, stats={"dead": [0.0, None], "<i>": [float("inf"), 2.0]}))
    for metric in ("dead", "<i>"):
        picture = root / "odd.svg"
        code, _, err = nanogpt("runs", "plot", folder.path, "--metric", metric, "--svg", picture)
        assert code == 0, err
        ElementTree.fromstring(picture.read_text("utf-8"))


def test_logs_without_a_recipe_are_not_taken_for_seeds(root: Path) -> None:
    for name in ("x-1", "x-2"):
        with EventWriter(RunFolder(root / name).events) as log:
            log(events.RunStarted(name=name))
            log(events.Eval(step=1, val_loss=1.0))
    assert list(plot(root, "x-1", "x-2", "x-1")) == ["x-1", "x-2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fast", "--metric", "resid_rm"], ["no run holds such a metric", "'resid_rms'"]),
        (["fast", "--metric", "resid_rms/2"], ["'2' is not a layer", "0 to 1"]),
        (["fast", "--metric", "resid_rms/²"], ["is not a layer"]),
        (["fast", "--metric", "bits_per_byte"], ["nothing to draw", "val_loss, loss"]),
        (["empty"], ["nothing to draw", "none yet"]),
        (["fast", "--x", "epochs"], ["--x epochs", "tokens"]),
        (["fast", "--band", "max"], ["--band max", "range"]),
        (["fast", "--smooth", "0.5"], ["--smooth is for metrics of every step"]),
        (["fast", "--at", "3"], ["--at chooses a step", "--metric resid_rms"]),
        (["fast", "--svg", "a.jpg"], [".png, .svg or .pdf"]),
        (["fats"], ["no run 'fats'", "'fast'"]),
    ],
)
def test_what_cannot_be_drawn_is_one_clear_line(
    root: Path, arguments: list[str], words: list[str]
) -> None:
    with EventWriter(RunFolder(root / "empty").events) as log:
        log(events.RunStarted(name="empty"))
    code, out, err = nanogpt("runs", "plot", *arguments, "--out", root, "--json")
    assert (code, out) == (2, "")
    for word in words:
        assert word in err


def test_without_a_file_to_write_it_says_so(root: Path) -> None:
    code, _, err = nanogpt("runs", "plot", "fast", "--out", root)
    assert code == 2
    assert "--svg" in err


def test_a_run_without_the_metric_is_named(root: Path) -> None:
    with EventWriter(RunFolder(root / "empty").events) as log:
        log(events.RunStarted(name="empty"))
    _, _, err = nanogpt("runs", "plot", "empty", "fast", "--out", root, "--json")
    assert "left out: empty" in err


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("runs-loss.svg", [*MUON, "adamw-1", "adamw-2", "adamw-3"]),
        ("runs-depth.svg", [*MUON, "--metric", "resid_rms"]),
    ],
)
def test_the_manuals_pictures_are_what_is_drawn(
    tmp_path: Path, name: str, arguments: list[str]
) -> None:
    """From the logs they were drawn from, without what these pictures do not show."""
    logs = Path(__file__).with_name("drawn_runs")
    nanogpt("runs", "plot", *arguments, "--out", logs, "--svg", tmp_path / name)
    committed = places.docs_folder() / name
    assert (tmp_path / name).read_text("utf-8") == committed.read_text("utf-8")


def test_a_shell_completes_every_statistic() -> None:
    known = {name.removeprefix("layers/") for name in complete.METRICS}
    assert set(stats.NAMES) <= known
