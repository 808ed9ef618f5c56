"""The session of a copied run: its state there, the other machine's clock, a cut connection."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import recorded

from nanogpt_cli.run.remote import status
from nanogpt_cli.run.remote.status import Status
from nanogpt_cli.tui.state import far

NOW = recorded.START + 1000.0
CONNECTED = Status(
    "gpu1:small", "gpu1", "runs/small", connected=True, since=NOW, control=True, alive=True
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return recorded.write_run(tmp_path / "small@gpu1", steps=50, ended="", pid=1, host="elsewhere")


def session(folder: Path, now: float = NOW, **changes: object) -> far.FarSession:
    status.write(folder, replace(CONNECTED, **changes))  # type: ignore[arg-type]
    found = far.session(folder, clock=lambda: now)
    assert isinstance(found, far.FarSession)
    found.poll()
    return found


def test_a_folder_of_this_machine_has_an_ordinary_session(folder: Path) -> None:
    assert not isinstance(far.session(folder), far.FarSession)


def test_the_clock_there_decides_what_is_late(folder: Path) -> None:
    last = session(folder).view.last_time
    assert session(folder, now=last + 1).state().word == "running"
    assert session(folder, now=last + 500).state().word == "stalled"
    behind = session(folder, now=last + 500, clock_s=-499.0)
    assert behind.state().word == "running"
    assert behind.problems() == "the clock of gpu1 is 8:19 behind this one"


def test_crashed_silent_and_gone(folder: Path) -> None:
    assert session(folder, alive=False).state().word == "crashed"
    assert session(folder, alive=None).state().word == "silent"
    assert session(folder, exists=False).state().word == "folder gone"


def test_a_cut_connection_says_since_when_and_sends_nothing(folder: Path) -> None:
    since = time.mktime((2031, 5, 6, 7, 8, 9, 0, 0, -1))
    cut = session(folder, connected=False, since=since, reason="timed out", alive=None)
    assert cut.state().word == "cut off since 2031-05-06 07:08"
    assert cut.state().live
    assert cut.problems() == "no connection to gpu1 since 2031-05-06 07:08: timed out"
    with pytest.raises(ConnectionError, match="no connection to gpu1 since 2031-05-06"):
        cut.send("stop")
    assert not cut.folder.control.exists()


def test_the_state_follows_the_connection(folder: Path) -> None:
    watching = session(folder, now=recorded.START + 60)
    watching.send("pause")
    assert [path.name[-5:] for path in watching.folder.control.iterdir()] == ["pause"]
    status.write(folder, replace(CONNECTED, connected=False))
    assert watching.state().word.startswith("cut off since")
    status.write(folder, replace(CONNECTED, trouble="the command pause was refused: no room"))
    assert watching.state().word.endswith("· a command failed")
    assert watching.problems() == "the command pause was refused: no room"


def test_an_ended_run_stays_ended_without_a_connection(tmp_path: Path) -> None:
    folder = recorded.write_run(tmp_path / "done@gpu1", steps=50, ended="finished")
    assert session(folder, connected=False).state().word == "finished"
