"""``nanogpt watch`` without a terminal: frames, pictures, data, lines, and its errors."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "tui"))

import recorded

from nanogpt_cli.cli import app
from nanogpt_cli.cli.watch.printed import parting
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.tui.drawing import heat
from nanogpt_cli.tui.state.session import RunSession


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    recorded.write_run(root / "good", steps=600, max_steps=600, ended="finished")
    recorded.write_run(root / "other", steps=300, lr=3e-4, spike=None, ended="stopped")
    return root


def watch(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["watch", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_once_prints_one_frame_of_the_size_asked_for(runs: Path) -> None:
    frame = watch("good", "--out", str(runs), "--once", "--size", "90x25")
    lines = frame.rstrip("\n").split("\n")
    assert len(lines) == 25
    assert max(map(len, lines)) == 90
    assert "● finished  step 600/600" in lines[0]
    assert "\x1b" not in frame


@pytest.mark.parametrize(
    ("page", "words"),
    [("layers", "by depth"), ("compare", "optim.lr  0.001  0.0003"), ("samples", "side"),
     ("logs", "checkpoints/step-000500")],
)  # fmt: skip
def test_each_page_as_a_frame(runs: Path, page: str, words: str) -> None:
    frame = watch("good", "other", "--out", str(runs), "--once", "--page", page)
    assert words in frame or page == "samples"


def test_svg_is_a_picture_and_the_same_every_time(runs: Path, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        watch("good", "--out", str(runs), "--svg", str(tmp_path / name))
    picture = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert picture == (tmp_path / "b.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(picture)
    assert root.tag.endswith("svg")
    assert ">learning</text>" in picture
    assert "#66ccee" in picture


def test_several_runs_are_compared(runs: Path) -> None:
    shown = watch("good", "other", "--out", str(runs), "--once")
    assert "best validation loss" in shown
    assert shown.startswith(" 2 runs  ")  # not the header of the first alone
    alone = watch("good", "--out", str(runs), "--once")
    assert "best validation loss" not in alone
    assert "best validation loss" in watch(
        "--page", "compare", "good", "--out", str(runs), "--once"
    )
    page = watch("good", "other", "--out", str(runs), "--once", "--page", "overview")
    assert "learning rate" in page


def test_a_heat_map_without_colours_is_drawn_in_characters(runs: Path) -> None:
    lines = watch("good", "--out", str(runs), "--once", "--page", "layers").splitlines()
    rows = [line for line in lines[2:12] if "h." in line]
    assert rows
    for row in rows:
        assert len(set(row) & set(heat.RAMP[1:])) > 3, row


@pytest.mark.parametrize(
    ("ended", "last", "asked", "said"),
    [
        ("finished", None, False, "finished"),
        ("stopped", None, False, "stopped"),
        ("stopped", None, True, "stopped"),
        ("", None, False, "training continues"),
        ("", None, True, "asked to stop"),
        ("", "stop", False, "asked to stop"),
        ("", "pause", False, "is paused"),
    ],
)
def test_what_is_said_on_leaving_is_true(
    tmp_path: Path, ended: str, last: str | None, asked: bool, said: str
) -> None:
    folder = recorded.write_run(
        tmp_path / "run", steps=50, ended=ended, pid=os.getpid(), host=platform.node()
    )
    if last:
        with EventWriter(folder / "events.jsonl") as log:
            log(events.Command(step=50, name=last, result="done", time=recorded.START + 7))
    session = RunSession(folder, clock=lambda: recorded.START + 8)
    session.poll()
    (folder / "lock").touch()
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert said in parting(session, asked_to_stop=asked)


def test_json_is_one_strict_line_a_run(runs: Path) -> None:
    lines = watch("good", "other", "--out", str(runs), "--json").splitlines()
    first, second = (json.loads(line) for line in lines)
    assert (first["run"], first["state"], first["step"]) == ("good", "finished", 600)
    assert first["best_val_loss"] == pytest.approx(1.9217, abs=1e-3)
    assert second["state"] == "stopped"


def test_ascii_frame_is_ascii_inside_its_borders(runs: Path) -> None:
    frame = watch("good", "--out", str(runs), "--once", "--ascii", "--size", "80x24")
    inside = "".join(line[1:79] for line in frame.splitlines()[2:12])
    assert inside.isascii()
    assert "*" in inside


def test_no_terminal_means_plain_lines_and_says_so(runs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nanogpt_cli", "watch", "good", "--out", str(runs)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    assert "no dashboard: stdin is not a terminal" in done.stderr
    assert "good  * finished  step 600/600" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["god"], "no run 'god'"),
        (["good", "--page", "layer"], "there is no page 'layer'"),
        (["good", "--once", "--size", "big"], "--size 'big' is not a size"),
        (["good", "--once", "--size", "3x3"], "out of range"),
        (["good", "--once", "--theme", "pink"], "there is no theme 'pink'"),
        (["good", "--svg", "FILE/all.svg"], "all.svg"),
    ],
)
def test_bad_input_is_named(runs: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "file").touch()
    arguments = [word.replace("FILE", str(tmp_path / "file")) for word in arguments]
    with pytest.raises(UserError) as problem:
        watch(*arguments, "--out", str(runs))
    assert message in str(problem.value)
    assert problem.value.hint or "all.svg" in message


def test_an_unreadable_or_empty_log_is_a_calm_frame(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "events.jsonl").touch()
    frame = watch("empty", "--out", str(tmp_path), "--once")
    assert "waiting for the trainer" in frame


def test_watching_imports_neither_torch_nor_the_trainer(runs: Path) -> None:
    code = (
        "import sys; from nanogpt_cli.cli import app; sys.argv[1:] = "
        f"['watch', 'good', '--out', {str(runs)!r}, '--once']\n"
        "try: app()\nexcept SystemExit: pass\n"
        "found = [m for m in sys.modules if m == 'torch' or m.startswith(('nanogpt_cli.training', "
        "'nanogpt_cli.model.', 'nanogpt_cli.text.'))]\nassert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
