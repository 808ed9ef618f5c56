"""What can go wrong between processes, without GPUs: too few of them, and peers that are lost."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import toy_run
from programs import LIMIT, as_ranks
from typer.testing import CliRunner

from nanogpt_cli import __main__
from nanogpt_cli.cli import app
from nanogpt_cli.cli.train import launch
from nanogpt_cli.errors import UserError
from nanogpt_cli.machine import joining, ranks
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.training.spec import resolve


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has two GPUs; whoever uses one fails."""

    def used(*_: object) -> None:
        raise AssertionError("there is no such GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a recipe whose data is not there yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.txt").write_text(toy_run.text())
    made = toy_run.recipe(data={"name": "toy.txt", "tokenizer": "char"}, train={"device": "auto"})
    (tmp_path / "toy.toml").write_text(recipe_files.to_toml(made))
    return tmp_path


def test_far_more_processes_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanogpt_cli.host.usable_cores", lambda: 2)
    ranks.check_devices("cpu", 8)
    with pytest.raises(UserError, match=r"99 processes .* on 2 cores") as caught:
        ranks.check_devices("cpu", 99)
    assert "start 2" in caught.value.hint
    monkeypatch.setattr("nanogpt_cli.host.usable_cores", lambda: 64)
    ranks.check_devices("cpu", 99)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ("--procs 4", "4 processes need a GPU each, and this machine has 2", "--procs 2`, or"),
        ("--procs 4 --device cuda", "this machine has 2", "--procs 2`, or"),
        ("--procs 2 --device cuda:1", "'cuda:1' names one GPU for 2 processes", '= "cuda"'),
        ("--procs 3 --device cpu", "8 sequences per step cannot be divided", "step = 192"),
    ],
)
@pytest.mark.usefixtures("two_gpus")
def test_processes_without_a_device_or_a_share_are_refused_before_anything_is_made(
    place: Path, arguments: str, message: str, hint: str
) -> None:
    before = sorted(place.rglob("*"))
    for command in ("train toy.toml", "recipe check toy.toml"):
        found = CliRunner().invoke(app, [*command.split(), *_allowed(command, arguments)])
        assert isinstance(found.exception, UserError), found.output
        assert message in found.exception.message
        assert hint in found.exception.hint
    assert sorted(place.rglob("*")) == before


def _allowed(command: str, arguments: str) -> list[str]:
    """``recipe check`` has no option for the device."""
    words = arguments.split()
    if command.startswith("recipe") and "--device" in words:
        at = words.index("--device")
        words[at : at + 2] = ["--set", f"train.device={words[at + 1]!r}"]
    return words


@pytest.mark.usefixtures("two_gpus")
def test_torchrun_may_start_no_more_ranks_than_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(rank=3, world=8, local_rank=3, joined=True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # on each of two machines
    recipe = toy_run.recipe(train={"device": "cuda"})
    with pytest.raises(UserError, match="4 processes need a GPU each") as caught:
        resolve(recipe, toy_run.data(tmp_path), group=group)
    assert "torchrun --nproc-per-node 2" in caught.value.hint


@pytest.mark.usefixtures("two_gpus")
def test_a_rank_without_a_gpu_joins_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be meant to compute on the CPU; the recipe is known only later."""

    def unreachable(*_: object, **__: object) -> None:
        raise dist.DistNetworkError("the store is not there")

    monkeypatch.setattr(dist, "init_process_group", unreachable)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(UserError, match="the store is not there"), joining.joined():
        pass


NCCL = (
    "NCCL error in: /torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, {}, NCCL version 2.27.5"
    "\n{}\nLast error:\n{}"
)
GONE = NCCL.format(
    "remote process exited or there was a network error",
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting "
    "prematurely.",
    "socketProgress: Connection closed by remote peer gpu7<41234>",
)
NO_ROOM = NCCL.format(
    "unhandled system error",
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed.",
    "Error while creating shared memory segment /dev/shm/nccl-1 (size 9637888)",
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]"),
            "another process of this job is gone (Connection closed by peer [127.0.0.1])",
        ),
        (
            RuntimeError("[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 600000ms"),
            "another process of this job has not answered for 600 s",
        ),
        (dist.DistNetworkError("Failed to recv, got 0 bytes"), "is gone (Failed to recv"),
        (dist.DistStoreError("wait timeout after 600000ms, keys: /a"), "has not answered"),
        (dist.DistBackendError(GONE), "another process of this job is gone (ncclRemoteError: A"),
        (dist.DistBackendError(NO_ROOM), "the GPUs cannot exchange data (ncclSystemError: Sys"),
    ],
)
def test_a_lost_peer_is_said_in_words(error: RuntimeError, said: str) -> None:
    with (
        pytest.raises(UserError) as caught,
        ranks.readable_losses(Group(1, 2, joined=True), lambda: "go on"),
    ):
        raise error
    assert caught.value.message.startswith("rank 1: ")
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint == ("go on" if "GPUs" not in said else caught.value.hint)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        RuntimeError("CUDA error: peer access is not supported between these two devices"),
        torch.OutOfMemoryError("CUDA out of memory; NCCL holds 2 GiB"),
    ],
)
def test_other_errors_are_not_taken_for_a_lost_peer(error: RuntimeError) -> None:
    for joined in (True, False):
        with (
            pytest.raises(type(error)) as caught,
            ranks.readable_losses(Group(0, 2, joined=joined), lambda: "go on"),
        ):
            raise error
        assert caught.value is error


def test_how_a_rank_ended_is_said_in_words() -> None:
    assert launch._cause(3) == "exit code 3"
    assert launch._cause(-15) == "signal SIGTERM"
    assert launch._cause(-40) == "signal 40"
    assert "another process has not answered" in launch._cause(-6)  # NCCL's watchdog


# The second rank finds too little memory in its third step.
LACKING = """
import os, sys, torch
from nanogpt_cli.training.stepper import Stepper

plain = Stepper._backward

def backward(self, step, slots, **options):
    if os.environ["RANK"] == "1" and step == 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
    return plain(self, step, slots, **options)

Stepper._backward = backward
from nanogpt_cli.cli import main
sys.argv[1:1] = ["train"]
main()
"""


def test_a_rank_without_memory_ends_the_job_in_one_line_a_rank(tmp_path: Path) -> None:
    data = toy_run.data(tmp_path)
    recipe = toy_run.recipe(data={"name": str(data.folder)})
    (tmp_path / "toy.toml").write_text(recipe_files.to_toml(recipe))
    (tmp_path / "lacking.py").write_text(LACKING)
    done = subprocess.run(
        as_ranks(2, "lacking.py", "toy.toml"),
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    first = next(line for line in errors if line.startswith("error: rank 1"))
    assert "a micro-batch of 4 sequences does not fit into the memory of cpu" in first
    assert "hint: set train.batch_size = 2" in done.stderr
    # The other one may be ended before it notices.
    others = [line for line in errors if line != first]
    assert len(others) <= 1
    assert all("rank 0: another process of this job is gone" in line for line in others)


def test_what_the_first_rank_refuses_is_said_once(place: Path) -> None:
    done = subprocess.run(
        as_ranks(2, __main__.__file__, "train", "missing.toml"),
        cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) == 1, done.stderr


# A process that was a rank, and then its parent, which was none, each to its end.
ENDING = """
import atexit, os, sys
import weakref
from nanogpt_cli.cli import main
from nanogpt_cli.machine import joining

atexit.register(print, "late")
if os.fork():
    ended = os.waitstatus_to_exitcode(os.wait()[1])
    for stream in (sys.stdout, sys.stderr):
        print("rank ended with", ended, file=stream, flush=True)
else:
    joining.past_ranks.append(0)
main()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("word", "code"), [("--version", 0), ("--nonsense", 2)])
def test_a_rank_does_not_wait_for_the_interpreter_to_end(word: str, code: int) -> None:
    """There a thread of gloo may abort it after all is done, which the launcher calls a failure."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING, word],
        capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == code
    out = done.stdout.split(f"rank ended with {code}\n")
    assert ["late" in part for part in out] == [False, True]
    shown, said = (out, "nanogpt-cli") if not code else (done.stderr.split("rank"), "nonsense")
    assert [said in part for part in shown] == [True, True]


def test_a_group_that_was_left_is_not_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its destructor joins gloo's threads, which may be waiting for the interpreter's lock."""
    monkeypatch.setenv("NANOGPT_JOIN_ALONE", "1")
    freed = []
    with joining.alone():
        group = dist.group.WORLD
        weakref.finalize(group, freed.append, "freed")
        dist.all_reduce(torch.ones(1))
    del group
    gc.collect()
    assert not dist.is_initialized()
    assert not freed
