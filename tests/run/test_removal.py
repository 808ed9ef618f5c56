"""What may be deleted, and that nothing else is."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from pathlib import Path

import pytest

from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events, removal
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.log import EventWriter


def made(folder: Path, *, ended: bool = True, pid: int = 0, host: str = "elsewhere") -> RunFolder:
    run = RunFolder(folder)
    with EventWriter(run.events) as log:
        log(events.RunStarted(name="r", pid=pid, host=host, time=1.0))
        if ended:
            log(events.RunEnded(step=0, reason="stopped", time=2.0))
    for part in (run.checkpoints, run.samples):
        part.mkdir()
    for part in (run.recipe, run.stdout, run.lock, run.checkpoints / "x", folder / ".tmp-left"):
        part.touch()
    return run


def refused(run: RunFolder) -> str:
    with pytest.raises(UserError) as error:
        removal.remove(run)
    assert run.path.is_symlink() or run.path.exists()
    return f"{error.value.message}: {error.value.hint}"


def test_a_run_that_has_ended_goes_and_its_neighbours_stay(tmp_path: Path) -> None:
    run, other = made(tmp_path / "run"), made(tmp_path / "other")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (run.samples / "link").symlink_to(outside)
    removal.remove(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "outside"]
    assert (outside / "kept").exists()
    assert other.recipe.exists()


def test_a_live_run_stays(tmp_path: Path) -> None:
    run = made(tmp_path / "run", ended=False, pid=os.getpid(), host=platform.node())
    with run.lock.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "it is being trained: stop the training first" in refused(run)
    removal.remove(run)


def test_a_run_whose_end_is_in_the_log_while_a_trainer_holds_it_stays(tmp_path: Path) -> None:
    """It is being resumed, and has not written yet."""
    run = made(tmp_path / "run", pid=2**22 + 1, host=platform.node())
    with run.lock.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "it is being trained" in refused(run)


def test_a_run_of_another_computer_stays_for_an_hour(tmp_path: Path) -> None:
    run = made(tmp_path / "run", ended=False)
    assert "another computer may be training it" in refused(run)
    removal.check_removable(run, now=time.time() + 3601)
    removal.check_removable(made(tmp_path / "ended"))


def test_a_link_stays_and_so_does_its_target(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    (tmp_path / "link").symlink_to(run.path)
    assert "it is a link to" in refused(RunFolder(tmp_path / "link"))
    assert run.recipe.exists()


@pytest.mark.parametrize("log", [None, b"", b"hello\n", b'{"a":1}\n'])
def test_a_folder_without_a_run_stays(tmp_path: Path, log: bytes | None) -> None:
    """A recipe makes no run: it may be a project."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "recipe.toml").touch()
    if log is not None:
        (folder / "events.jsonl").write_bytes(log)
    if log == b"":  # a run that failed at its start
        removal.remove(RunFolder(folder))
        return
    assert "no event log" in refused(RunFolder(folder))


@pytest.mark.parametrize("name", ["main.py", "inner", "notes.txt"])
def test_a_run_with_something_else_in_it_stays(tmp_path: Path, name: str) -> None:
    run = made(tmp_path / "run")
    made(run.path / name) if name == "inner" else (run.path / name).touch()
    assert f"it holds {name!r}, which is not part of a run" in refused(run)
