"""Kills a trainer with SIGKILL at random moments until enough; run as a program by the tests.

The trainer runs in forked children of a process that has imported PyTorch but computed nothing, so
a start costs milliseconds and a hundred kills are a matter of a minute.
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

from nanogpt_cli.cli import training
from nanogpt_cli.core import retention
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.runlog import RunFolder


def recipe(max_steps: int) -> Recipe:
    """Dropout, accumulation, two optimizers and an average; saving takes most of the time."""
    return toy_run.recipe(
        model={"dropout": 0.1},
        train={
            "max_steps": max_steps, "checkpoint_every": 1, "eval_every": 15, "tokens_per_step": 128,
            "batch_size": 4, "keep": 2,
        },
        optim={"name": "muon", "warmup_steps": 5, "ema": 0.99},
    )  # fmt: skip


def start(plan: training.Plan) -> int:
    """Fork a trainer; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    code = 1
    try:
        code = 0 if training.run_alone(plan).reason == "finished" else 1
    finally:
        os._exit(code)


def await_step(run: RunFolder, pid: int) -> None:
    """Return when the trainer has logged a step since now."""
    seen = run.events.stat().st_size if run.events.exists() else 0
    while True:
        if run.events.exists():
            with run.events.open("rb") as file:
                file.seek(seen)
                if b'"type":"step"' in file.read():
                    return
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise SystemExit("the run ended before enough kills, or before a step: raise max_steps")
        time.sleep(0.002)


def hammer(folder: Path, data: Path, kills: int, max_steps: int, seed: int) -> dict[str, int]:
    """Train to the end in spite of ``kills`` kills; returns how many of them hit what."""
    rng = random.Random(seed)
    run = RunFolder(folder)
    folder.mkdir()
    wanted = recipe(max_steps)
    counts = {"kills": 0, "during_a_save": 0, "before_any_checkpoint": 0, "starts": 0}
    while True:
        newest = retention.newest_intact(run)[0]
        pid = start(training.Plan(wanted, data, run, resume=newest is not None))
        counts["starts"] += 1
        if counts["kills"] < kills:
            if rng.random() > 0.15:  # the others are killed while starting
                await_step(run, pid)
            time.sleep(rng.uniform(0.0, 0.25))
            if os.waitpid(pid, os.WNOHANG)[0]:
                raise SystemExit("the run ended before enough kills: raise max_steps")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            counts["kills"] += 1
            saving = run.checkpoints.is_dir() and any(
                path.name.startswith(".tmp-") for path in run.checkpoints.iterdir()
            )
            counts["during_a_save"] += saving
            counts["before_any_checkpoint"] += newest is None
            continue
        if os.waitpid(pid, 0)[1]:
            raise SystemExit("the trainer failed")
        return counts


if __name__ == "__main__":
    target, tokens, kills, steps, seed = sys.argv[1:]
    counted = hammer(Path(target), Path(tokens), int(kills), int(steps), int(seed))
    sys.stdout.write(json.dumps(counted) + "\n")
