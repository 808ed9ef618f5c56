"""Interrupts a trainer at random moments until enough; run as a program by the tests.

The trainer runs in forked children of a process that has imported PyTorch but computed nothing, so
a start costs milliseconds and a hundred interruptions are a matter of a minute.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch._dynamo  # noqa: F401 - which the first optimizer would import in every child
import toy_run

from nanogpt_cli.cli.train import jobs, running
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.training.checkpoints import retention

# No child is waited for longer than this.
LIMIT_S = 120.0
# Signals, each after a random pause. A lone SIGINT lets the trainer finish its step and save.
WAYS = (
    (signal.SIGKILL,),
    (signal.SIGKILL,),
    (signal.SIGINT,),
    (signal.SIGINT, signal.SIGINT),
    (signal.SIGINT, signal.SIGKILL),
    (signal.SIGTERM, signal.SIGKILL),
)


def recipe(max_steps: int) -> Recipe:
    """Dropout, accumulation, two optimizers, an average, samples, statistics and patience.

    Saves and evaluations are due at different steps and take most of the time.
    """
    return toy_run.recipe(
        model={"dropout": 0.1},
        train={
            "max_steps": max_steps, "checkpoint_every": 2, "eval_every": 3, "tokens_per_step": 128,
            "batch_size": 4, "keep": 2, "patience": 10_000,
        },
        optim={"name": "muon", "warmup_steps": 5, "ema": 0.9},
        sample={"max_new_tokens": 4, "every": 5, "prompt": "the"},
        stats={"every": 4, "budget": 1.0},
    )  # fmt: skip


def start(job: jobs.Job) -> int:
    """Fork a trainer; returns its process id. It exits with 0 if the run is finished, else 3."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        error = os.open(job.run.path / "stderr.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(error, 2)
        code = 0 if running.run_alone(job).reason == "finished" else 3
    except KeyboardInterrupt:
        code = 3
    finally:
        os._exit(code)


def has_ended(pid: int) -> bool:
    """Whether a child is a zombie by now; it stays to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def await_step(run: RunFolder, pid: int) -> None:
    """Return when the trainer has logged a step since now, or has ended."""
    seen = run.events.stat().st_size if run.events.exists() else 0
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if run.events.exists():
            with run.events.open("rb") as file:
                file.seek(seen)
                if b'"type":"step"' in file.read():
                    return
        if has_ended(pid):
            return
        time.sleep(0.002)
    raise SystemExit("the trainer makes no step")


def reap(pid: int) -> int:
    """The child's status; it must end within the limit."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise SystemExit("the trainer does not end")


def hammer(
    folder: Path, data: Path, interruptions: int, max_steps: int, seed: int
) -> dict[str, int]:
    """Train to the end in spite of everything; returns how many interruptions hit what."""
    rng = random.Random(seed)
    run = RunFolder(folder)
    folder.mkdir()
    wanted = recipe(max_steps)
    counts = {"interruptions": 0, "kills": 0, "starts": 0, "during_a_save": 0, "in_time": 0}
    while True:
        newest = retention.newest_intact(run)[0]
        pid = start(jobs.Job(wanted, data, run, resume=newest is not None))
        counts["starts"] += 1
        if counts["interruptions"] < interruptions:
            if rng.random() > 0.15:  # the others are interrupted while starting
                await_step(run, pid)
            way = rng.choice(WAYS)
            for number in way:
                time.sleep(rng.uniform(0.0, 0.15))
                if not has_ended(pid):
                    os.kill(pid, number)
                    counts["in_time"] += 1
            counts["interruptions"] += 1
            counts["kills"] += way[-1] == signal.SIGKILL
        status = reap(pid)
        if run.checkpoints.is_dir():
            counts["during_a_save"] += any(
                path.name.startswith(".tmp-") for path in run.checkpoints.iterdir()
            )
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return counts
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 3:
            raise SystemExit((folder / "stderr.log").read_text(encoding="utf-8"))


def main(folder: str, data: str, interruptions: str, max_steps: str, *seeds: str) -> None:
    """Train into ``calm`` without interruptions, then into ``seed-N`` for each seed."""
    hammer(Path(folder, "calm"), Path(data), 0, int(max_steps), 0)
    counts = {
        seed: hammer(
            Path(folder, f"seed-{seed}"), Path(data), int(interruptions), int(max_steps), int(seed)
        )
        for seed in seeds
    }
    sys.stdout.write(json.dumps(counts) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
