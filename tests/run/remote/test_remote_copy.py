"""Copies of runs on another machine: complete, exact, and told apart from what replaced them.

The far side's loop is run by this machine's ``sh``; ``test_remote_connection.py`` has the network.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import far_host
import programs
import pytest

from nanogpt_cli.errors import UserError
from nanogpt_cli.run import commands, events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.remote import address, mirror, refusals, status
from nanogpt_cli.run.remote.follower import Follower

STEP = b'{"type":"step","time":1.0,"step":%d,"loss":2.0,"lr":0.1,"tokens":8}\n'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return far_host.pretended(tmp_path, monkeypatch)


@pytest.fixture
def run(home: Path) -> Path:
    folder = home / "runs" / "it's small"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text("[run]\n", encoding="utf-8")
    (folder / "events.jsonl").write_bytes(b"".join(STEP % i for i in range(100)))
    return folder


@pytest.fixture
def follower(run: Path) -> Iterator[Follower]:
    with following("gpu1:it's small") as found:
        yield found


class following:  # noqa: N801 - reads as a verb
    def __init__(self, *texts: str, control: bool = True) -> None:
        found = [address.parse(text) for text in texts]
        self.follower = Follower([a for a in found if a is not None], control=control)

    def __enter__(self) -> Follower:
        try:
            self.follower.connect(asking=False)
            self.follower.sync()
        except BaseException:
            self.follower.stop()
            raise
        return self.follower

    def __exit__(self, *_: object) -> None:
        self.follower.stop()


def same(follower: Follower, run: Path, name: str = "events.jsonl") -> bool:
    return (follower.folders[0] / name).read_bytes() == (run / name).read_bytes()


def inode(follower: Follower) -> int:
    return (follower.folders[0] / "events.jsonl").stat().st_ino


def told(follower: Follower) -> status.Status:
    found = status.read(follower.folders[0])
    assert found is not None
    return found


def test_everything_a_dashboard_reads_is_copied_and_no_checkpoint(
    run: Path, tmp_path: Path
) -> None:
    (run / "stdout.log").write_bytes(os.urandom(3000))
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    with following("gpu1:it's small") as follower:
        copied = {path.name for path in follower.folders[0].iterdir()}
        assert copied == {"events.jsonl", "recipe.toml", "stdout.log", "mirror.json"}
        assert all(same(follower, run, name) for name in copied - {"mirror.json"})
        assert told(follower).connected
    assert not told(follower).connected
    assert len((tmp_path / "connections").read_text().split()) == 1


def test_a_log_larger_than_a_chunk_and_what_is_appended(follower: Follower, run: Path) -> None:
    first = inode(follower)
    with (run / "events.jsonl").open("ab") as log:
        log.write(STEP % 7 * (2 * mirror.CHUNK // len(STEP)) + b'{"type":"st')
    follower.sync()
    assert same(follower, run)
    with (run / "events.jsonl").open("ab") as log:
        log.write(b'ep"}\n')
    follower.sync()
    assert same(follower, run)
    assert inode(follower) == first


@pytest.mark.parametrize("how", ["replaced", "shorter", "rewritten", "repaired", "emptied"])
def test_a_log_that_is_not_continued_is_copied_anew(
    follower: Follower, run: Path, how: str
) -> None:
    log, first = run / "events.jsonl", inode(follower)
    old = log.read_bytes()
    if how == "replaced":
        (run / "new").write_bytes(old + b"{}\n")
        (run / "new").replace(log)
    elif how == "shorter":
        os.truncate(log, 300)
    elif how == "rewritten":  # in its place, and longer
        log.write_bytes(b"".join(STEP % (9 * i) for i in range(200)))
    elif how == "emptied":
        os.truncate(log, 0)
    else:  # a trainer that goes on after a crash cuts the torn line off
        log.write_bytes(
            old + b'{"type":"torn and much longer than the overlap", "x": "' + b"y" * 99
        )
        follower.sync()
        assert same(follower, run)
        log.write_bytes(old + STEP % 100 * 9)
    follower.sync()
    assert same(follower, run)
    assert inode(follower) != first  # so that readers notice


def test_a_later_command_goes_on_from_the_copy_unless_it_is_wrong(run: Path) -> None:
    with following("gpu1:it's small") as follower:
        first = inode(follower)
    with (run / "events.jsonl").open("ab") as log:
        log.write(STEP % 100)
    with following("gpu1:it's small") as follower:
        assert same(follower, run)
        assert inode(follower) == first
    log = follower.folders[0] / "events.jsonl"
    log.write_bytes(log.read_bytes()[:-5] + b"\0\0\0\0\0")  # as after a loss of power
    with following("gpu1:it's small") as follower:
        assert same(follower, run)
        assert inode(follower) != first


def test_two_commands_at_once_have_a_copy_each(run: Path) -> None:
    with following("gpu1:it's small") as one, following("gpu1:it's small") as two:
        assert one.folders != two.folders
        assert same(one, run)
        assert same(two, run)


def test_a_copy_that_is_cleared_meanwhile_is_made_again(follower: Follower, run: Path) -> None:
    for path in follower.folders[0].iterdir():
        path.unlink()
    follower.sync()
    assert same(follower, run)
    assert told(follower).connected


def test_only_the_end_of_a_long_output_is_copied(follower: Follower, run: Path) -> None:
    output = run / "stdout.log"
    output.write_bytes(os.urandom(3 << 20))
    follower.sync()
    with output.open("ab") as file:
        file.write(b"the end")
    follower.sync()
    copied = (follower.folders[0] / "stdout.log").read_bytes()
    assert len(copied) == (1 << 20) + 7
    assert output.read_bytes().endswith(copied)


def test_the_trainer_is_judged_by_its_own_machine(follower: Follower, run: Path) -> None:
    assert told(follower).alive is None
    trainer = programs.start(["sleep", "600"])
    for host, alive in (("elsewhere", None), (socket.gethostname(), True)):
        started = events.RunStarted(name="small", host=host, pid=trainer.pid)
        with (run / "events.jsonl").open("a", encoding="utf-8") as log:
            log.write(events.encode(started) + "\n")
        follower.sync()
        follower.sync()  # the first learnt of the process
        assert told(follower).alive is alive
    trainer.kill()
    trainer.wait(programs.LIMIT)
    follower.sync()
    assert told(follower).alive is False


def test_commands_reach_the_trainer_once_and_in_order(follower: Follower, run: Path) -> None:
    copy = RunFolder(follower.folders[0])
    prompt = "To be\nor 'not' $HOME `x` \\ ä…"
    commands.send_command(copy, "sample", prompt)
    commands.send_command(copy, "pause")
    (copy.control / "00-odd;name").write_text("x", encoding="utf-8")
    follower.sync()
    assert commands.take_commands(RunFolder(run)) == [("sample", prompt), ("pause", "")]
    assert list(copy.control.iterdir()) == []
    follower.sync()
    assert commands.take_commands(RunFolder(run)) == []


def test_a_command_that_cannot_be_written_is_told(follower: Follower, run: Path) -> None:
    (run / "control").write_text("no folder", encoding="utf-8")
    commands.send_command(RunFolder(follower.folders[0]), "lr", "0.5")
    follower.sync()
    assert "lr was refused: runs/it's small/control" in told(follower).trouble
    (run / "control").unlink()
    commands.send_command(RunFolder(follower.folders[0]), "pause")
    follower.sync()
    assert told(follower).trouble == ""
    assert same(follower, run)


def test_nothing_is_sent_without_control_nor_what_an_earlier_dashboard_left(run: Path) -> None:
    with following("gpu1:it's small", control=False) as follower:
        commands.send_command(RunFolder(follower.folders[0]), "stop")
        follower.sync()
    with following("gpu1:it's small") as follower:
        follower.sync()
    assert commands.take_commands(RunFolder(run)) == []


def test_a_folder_that_vanishes_and_files_that_do(follower: Follower, run: Path) -> None:
    (run / "recipe.toml").unlink()
    follower.sync()
    assert not (follower.folders[0] / "recipe.toml").exists()
    run.rename(run.with_name("elsewhere"))
    follower.sync()
    assert not told(follower).exists
    assert (follower.folders[0] / "events.jsonl").exists()


def test_named_pipes_are_left_alone(follower: Follower, run: Path) -> None:
    os.mkfifo(run / "stdout.log")
    follower.sync()
    assert not (follower.folders[0] / "stdout.log").exists()


def test_a_login_shell_that_prints_is_waited_out(run: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "ssh"
    text = program.read_text(encoding="utf-8")
    program.write_text(text.replace("cd ", "echo Welcome; echo to \x1b[5mall; cd ", 1), "utf-8")
    with following("gpu1:it's small") as follower:
        assert same(follower, run)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu1:nowhere", "there is no folder nowhere or runs/nowhere on gpu1"),
        ("gpu1:/nowhere", "there is no folder /nowhere on gpu1"),
        ("gpu1:empty", "'gpu1:empty' is not a run"),
    ],
)
def test_addresses_without_a_run(run: Path, home: Path, text: str, said: str) -> None:
    (home / "empty").mkdir()
    with pytest.raises(UserError, match=said), following(text):
        pass


def test_a_folder_of_runs_names_them_newest_first(run: Path, home: Path) -> None:
    other = home / "runs" / "other"
    other.mkdir()
    (other / "events.jsonl").touch()
    os.utime(other / "events.jsonl", (1, 1))
    for text in ("gpu1:", "gpu1:runs", "gpu1:~/runs/"):
        with pytest.raises(refusals.NotARunError) as refused, following(text):
            pass
        assert refused.value.runs == ["gpu1:runs/it's small", "gpu1:runs/other"]


def test_several_runs_of_a_host_share_a_connection(run: Path, home: Path, tmp_path: Path) -> None:
    other = home / "other"
    other.mkdir()
    (other / "events.jsonl").write_bytes(STEP % 1)
    with following("gpu1:it's small", "gpu1:other") as follower:
        assert same(follower, run)
        assert (follower.folders[1] / "events.jsonl").read_bytes() == STEP % 1
    assert len((tmp_path / "connections").read_text().split()) == 1


def test_a_machine_without_a_shell_is_named(tmp_path: Path, run: Path) -> None:
    program = tmp_path / "bin" / "ssh"
    program.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    with (
        pytest.raises(UserError, match="the remote machine has no POSIX shell"),
        following("gpu1:x"),
    ):
        pass


def test_what_stands_in_a_broken_status_is_no_status(follower: Follower) -> None:
    path = follower.folders[0] / "mirror.json"
    good = json.loads(path.read_text(encoding="utf-8"))
    for key, value in (("since", "x"), ("known", 3), ("address", None), ("alive", 1.5)):
        path.write_text(json.dumps({**good, key: value}), encoding="utf-8")
        assert status.read(path.parent) is None, key


def test_a_shell_without_stat(run: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "ls", "dd", "head", "tail", "uname", "date", "mkdir", "mv", "cat"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    program = tmp_path / "bin" / "ssh"
    text = program.read_text(encoding="utf-8")
    program.write_text(text.replace("HOME=", f"PATH={tools} HOME=", 1), encoding="utf-8")
    with following("gpu1:it's small") as follower:
        assert same(follower, run)
        with (run / "events.jsonl").open("ab") as log:
            log.write(STEP % 100)
        follower.sync()
        assert same(follower, run)
