"""``nanogpt watch HOST:PATH``: frames, lists and refusals; the far machine is this one."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import far_host
import programs
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tui"))

import recorded

from nanogpt_cli import caches


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = far_host.pretended(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    (home / "runs").mkdir()
    recorded.write_run(home / "runs" / "small", steps=60, max_steps=60, ended="finished")
    return home


def test_a_frame_and_what_to_type_next(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert programs.nanogpt("watch", "ada@gpu1:small", "--once", "--size", "90x25") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(" small@gpu1  ● finished  step 60/60")
    assert shown.err.splitlines()[-1] == "next: scp -r ada@gpu1:runs/small runs/"
    assert [entry.name[:11] for entry in caches.select(["mirrors"])] == ["small@gpu1-"]


def test_far_and_local_runs_side_by_side(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded.write_run(Path("runs") / "mine", steps=30, ended="stopped")
    assert programs.nanogpt("watch", "mine", "gpu1:small", "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    found = [(one["run"], one["state"], one["step"]) for one in map(json.loads, lines)]
    assert found == [("mine", "stopped", 30), ("small@gpu1", "finished", 60)]


def test_a_trainer_there_is_alive_until_it_is_not(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = programs.start(["sleep", "600"])
    folder = home / "runs" / "live"
    recorded.write_run(folder, steps=30, ended="", pid=trainer.pid, host=socket.gethostname())
    assert programs.nanogpt("watch", "gpu1:live", "--json") == 0
    # The log is years old, but its process lives and no lock says otherwise.
    assert json.loads(capsys.readouterr().out)["state"] == "stalled"
    trainer.kill()
    trainer.wait(programs.LIMIT)
    assert programs.nanogpt("watch", "gpu1:live", "--plain") == 0
    assert "x crashed" in capsys.readouterr().out


def test_runs_there_are_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "runs" / "x\x1b[5m").mkdir()
    (home / "runs" / "x\x1b[5m" / "recipe.toml").touch()
    os.utime(home / "runs" / "x\x1b[5m" / "recipe.toml", (1, 1))
    assert programs.nanogpt("watch", "gpu1:") == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["gpu1:runs/small", "gpu1:runs/x\\x1b[5m"]
    assert shown.err.splitlines()[-1] == "next: nanogpt watch gpu1:runs/small"


def test_a_local_folder_with_a_colon_wins(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded.write_run(Path("gpu1:small"), steps=10, ended="stopped")
    assert programs.nanogpt("watch", "gpu1:small", "--json") == 0
    assert json.loads(capsys.readouterr().out)["step"] == 10
    assert not Path("connections").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gpu1:nowhere"], "error: there is no folder nowhere or runs/nowhere on gpu1"),
        (["gpu1:runs", "gpu1:small"], "error: gpu1:runs is not a run but a folder of 1 run"),
        (["gpu1:no\x1b[5mwhere"], "error: there is no folder no\\x1b[5mwhere or"),
        (["http://gpu1/x"], "error: no run 'http://gpu1/x'"),
        (["gpu1:small", "nowhere"], "error: no run 'nowhere'"),
    ],
)
def test_what_is_not_there(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert programs.nanogpt("watch", "--once", *words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(said)
    assert len(shown.err.splitlines()) <= 2


def test_without_ssh(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(home))
    assert programs.nanogpt("watch", "gpu1:small", "--once") == 2
    assert "error: ssh is not installed" in capsys.readouterr().err


def test_a_connection_that_breaks_while_copying(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program = tmp_path / "bin" / "ssh"
    text = program.read_text(encoding="utf-8")
    pid = tmp_path / "pid"
    # The far program may have written all by then, and would wait for the next request.
    broken = (
        f'exec 3<&0; {{ sh -c "$command" <&3 & echo $! > {pid}; wait; }} | '
        f'{{ dd bs=1 count=4000 2>/dev/null; echo "\x1b[5mBroken pipe" >&2; kill $(cat {pid}); }}; '
        "exit 255"
    )
    program.write_text(text.replace('exec sh -c "$command"', broken), encoding="utf-8")
    assert programs.nanogpt("watch", "gpu1:small", "--once") == 2
    assert "the connection to gpu1 broke: \\x1b[5mBroken pipe" in capsys.readouterr().err
