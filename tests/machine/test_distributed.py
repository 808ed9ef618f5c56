"""Two processes over gloo against one, through the program itself.

PyTorch's launcher starts an interpreter a process, which takes most of the time: it does so where
what it does is shown, and elsewhere the ranks are forked.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import programs
import pytest
import torch
import toy_run
from programs import LIMIT, finish

from nanogpt_cli import __main__
from nanogpt_cli.errors import UserError
from nanogpt_cli.machine import distributed, joining
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.training.checkpoints import checkpoint, retention
from nanogpt_cli.training.trainer import Trainer


def written(folder: Path, wanted: Recipe, data: Path) -> Path:
    section = wanted.data.model_copy(update={"name": str(data)})
    path = folder / "toy.toml"
    path.write_text(recipe_files.to_toml(wanted.model_copy(update={"data": section})))
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "nanogpt_cli", "train", *map(str, arguments)]


def forked(*arguments: object) -> list[str]:
    """The same command as two ranks without a launcher."""
    return programs.as_ranks(2, __main__.__file__, "train", *map(str, arguments))


def train(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        words,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )


def processes_of(run: RunFolder) -> list[int]:
    """How many processes trained it, each time that it was begun or went on."""
    log = EventReader(run.events).read_all()
    return [e.processes for e in log if isinstance(e, events.RunStarted)]


def compare(one: RunFolder, two: RunFolder) -> None:
    logs = [list(EventReader(run.events).read_all()) for run in (one, two)]
    first, second = (toy_run.losses(log) for log in logs)
    assert first == pytest.approx(second, abs=1e-5)
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.EMA):
        ours, theirs = (checkpoint.read_tensors(retention.find(r) / name) for r in (one, two))
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert (ours[key] - theirs[key]).abs().max() < 1e-3, key


def alone(folder: Path, parts: dict[str, Any]) -> RunFolder:
    """Twelve steps on one process, in this one."""
    folder.mkdir()
    trainer = Trainer(shared_recipe("ddp", 12, parts), toy_run.data(folder), RunFolder(folder))
    with EventWriter(RunFolder(folder).events) as write:
        for event in trainer.run():
            write(event)
    return RunFolder(folder)


def shared_recipe(parallel: str, max_steps: int, parts: dict[str, Any]) -> Recipe:
    return toy_run.recipe(
        model={"dropout": 0.1, **parts},
        train={"parallel": parallel, "max_steps": max_steps, "batch_size": 4},
        optim={"name": "muon", "schedule": "constant", "ema": 0.9},
        stats={"every": 3, "budget": 0.5},
        sample={"max_new_tokens": 3, "prompt": "the "},
    )


@pytest.mark.parametrize(
    ("parallel", "parts"), [("ddp", {}), ("fsdp", {}), ("fsdp", toy_run.MODERN)]
)
def test_two_processes_equal_one_and_resume_as_one(
    tmp_path: Path, parallel: str, parts: dict[str, Any]
) -> None:
    """Six steps on two processes, the other six on one."""
    data = toy_run.data(tmp_path)
    recipe = written(tmp_path, shared_recipe(parallel, 6, parts), data.folder)
    launched = parallel == "ddp"
    words = command(recipe, "--procs", 2, "--json") if launched else forked(recipe, "--json")
    two = train(tmp_path, words)
    assert two.returncode == 0, two.stderr
    facts = json.loads(two.stdout.splitlines()[-1])
    assert (facts["reason"], facts["step"]) == ("finished", 6)
    run = RunFolder(tmp_path / facts["run"])
    assert processes_of(run) == [2]
    second = Trainer(shared_recipe(parallel, 12, parts), data, run, checkpoint=retention.find(run))
    with EventWriter(run.events) as write:
        for event in second.run():
            write(event)
    compare(alone(tmp_path / "alone", parts), run)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the rank in /proc")
def test_a_killed_rank_ends_the_job_in_words_and_a_restart_finishes_it(tmp_path: Path) -> None:
    wanted = toy_run.recipe(train={"max_steps": 4000, "checkpoint_every": 5, "eval_every": 0})
    recipe = written(tmp_path, wanted, toy_run.data(tmp_path).folder)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = programs.start(
        command(recipe, "--procs", 2), cwd=tmp_path, env=environment, text=True
    )
    run = RunFolder(tmp_path / "runs" / "toy")
    programs.until(lambda: len(retention.list_steps(run)) >= 2, process)
    os.kill(_other_rank(tmp_path), signal.SIGKILL)
    _, complaint = finish(process)
    assert process.returncode == 2
    assert "ended with signal SIGKILL" in complaint
    assert "--resume --procs 2" in complaint
    assert "Traceback" not in complaint
    step = retention.list_steps(run)[-1]
    limit = ["--set", f"train.max_steps={step + 3}"]
    again = train(tmp_path, forked(run.path, "--resume", *limit))
    assert again.returncode == 0, again.stderr
    assert "resuming from" in again.stderr
    assert retention.list_steps(run)[-1] == step + 3
    assert processes_of(run) == [2, 2]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the rank in /proc")
def test_a_rank_that_does_not_answer_ends_the_job_in_words(tmp_path: Path) -> None:
    wanted = toy_run.recipe(train={"max_steps": 100_000, "checkpoint_every": 5, "eval_every": 0})
    recipe = written(tmp_path, wanted, toy_run.data(tmp_path).folder)
    environment = os.environ | {"OMP_NUM_THREADS": "1", joining.PATIENCE: "10"}
    said = tmp_path / "said.txt"
    with said.open("w") as output:
        process = programs.start(
            command(recipe, "--procs", 2), cwd=tmp_path, env=environment, stderr=output
        )
    run = RunFolder(tmp_path / "runs" / "toy")
    programs.until(lambda: retention.list_steps(run), process)
    silent = _other_rank(tmp_path)
    os.kill(silent, signal.SIGSTOP)
    programs.until(lambda: "has not answered for 10 s" in said.read_text(), process)
    os.kill(silent, signal.SIGCONT)  # else the launcher waits half a minute before it kills
    finish(process)
    assert process.returncode == 2
    assert "--resume --procs 2" in said.read_text()
    assert "Traceback" not in said.read_text()


def _other_rank(folder: Path) -> int:
    """The process id of rank 1 of the job that was started in ``folder``."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            here = (entry / "cwd").readlink() == folder
        except OSError:
            continue
        if here and b"RANK=1" in environment:
            return int(entry.name)
    raise AssertionError("no rank 1")


def test_slots_are_dealt_evenly_or_refused() -> None:
    assert [list(Group(rank, 2).own_slots(6)) for rank in range(2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(
        UserError, match="7 sequences per step cannot be divided evenly among 2 processes"
    ):
        Group(0, 2).own_slots(7)


def test_alone_everything_is_a_no_op() -> None:
    group, tensor = Group(), torch.ones(2)
    assert group.share({"a": 1}) == {"a": 1}
    assert group.sum(tensor) is tensor
    assert not group.any(False)
    assert group.leads
    assert distributed.whole({"t": tensor}, group)["t"] is tensor
    assert distributed.rows(tensor) == (0, tensor)
    assert distributed.local(tensor) is tensor
