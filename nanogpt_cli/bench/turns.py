"""Two training loops that take turns on one machine, each in a separate process.

Both run unmodified and endlessly; the one that does not have its turn is stopped by SIGSTOP. A step
counts if it lies completely inside a turn, so starting, stopping and warm-up are never measured.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli import files
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.recipe import Recipe

# Number of steps after which a loop is warmed up.
_WARM_STEPS = 5
_FOREVER = 10**9
_NANOGPT_LINE = re.compile(r"iter (\d+): loss (\S+), time ([\d.]+)ms")
# Variables that our program sets for its own threads and that the other loop must not inherit.
OWN_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OPENBLAS_NUM_THREADS")


@dataclass
class Loop:
    """A training loop in a separate process.

    Attributes:
        name: name of the program.
        process: the process, which leads its own session.
        log: file with its output, for error messages.
        times: (end, seconds) of each step so far; the end is in seconds since the epoch.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    times: list[tuple[float, float]] = field(default_factory=list)

    def look(self) -> None:
        """Update ``times``."""

    def turn(self, seconds: float) -> list[float]:
        """Let the loop run for a while; returns the times of the steps completely inside."""
        os.killpg(self.process.pid, signal.SIGCONT)
        start = time.time()
        time.sleep(seconds)
        stop = time.time()
        os.killpg(self.process.pid, signal.SIGSTOP)
        time.sleep(0.05)  # its last line may still be in the pipe
        self.look()
        return [took for end, took in self.times if end - took >= start and end <= stop]

    def warm_up(self) -> None:
        """Wait for the first steps, then stop the loop.

        Raises:
            UserError: the process ended instead.
        """
        while len(self.times) < _WARM_STEPS:
            if self.process.poll() is not None:
                text = self.log.read_text(encoding="utf-8", errors="replace").strip()
                last = (text.splitlines() or ["it printed nothing"])[-1]
                raise UserError(f"{self.name} ended before its first steps", last)
            time.sleep(0.1)
            self.look()
        os.killpg(self.process.pid, signal.SIGSTOP)

    def end(self) -> None:
        """Kill the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class OurLoop(Loop):
    """``nanogpt train``, timed by its event log: a step lasts from the event before to its own."""

    events: Path
    started: dict[str, Any]

    def look(self) -> None:
        """Update ``times`` from the event log."""
        if not self.events.exists():
            return
        lines = self.events.read_text(encoding="utf-8").splitlines()
        ends = []
        for line in lines:
            if line.startswith('{"type":"step",') and line.endswith("}"):
                ends.append(json.loads(line)["time"])
            elif line.startswith('{"type":"run_started",'):
                self.started = json.loads(line)
        self.times = [(b, b - a) for a, b in itertools.pairwise(ends)]


@contextlib.contextmanager
def ours(recipe: Recipe, data: Path, folder: Path) -> Iterator[OurLoop]:
    """Run ``nanogpt train`` on a recipe, without evaluations, checkpoints and samples."""
    from nanogpt_cli.recipe import files as recipe_files

    changes: dict[str, dict[str, Any]] = {
        "run": {"name": "bench"},
        "data": {"name": str(data.absolute())},
        "train": {"max_steps": _FOREVER, "eval_every": 0, "checkpoint_every": 0, "patience": 0},
        "optim": {"schedule": "constant"},
        "sample": {"max_new_tokens": 0},
    }
    values = recipe.model_dump(mode="json")
    for section, keys in changes.items():
        values[section] |= keys
    written = folder / "bench.toml"
    files.write_text(written, recipe_files.to_toml(recipe_files.from_values(values)))
    command = [sys.executable, "-m", "nanogpt_cli", "train", str(written), "--out", str(folder)]
    log = folder / "ours.log"
    with log.open("wb") as out:
        process = _start(command, stdout=out, stderr=out, cwd=Path.cwd(), env=dict(os.environ))
    loop = OurLoop("nanogpt train", process, log)
    loop.events, loop.started = folder / "bench" / "events.jsonl", {}
    try:
        yield loop
    finally:
        loop.end()


@contextlib.contextmanager
def nanogpt(
    checkout: Path, recipe: Recipe, data: Path, vocab_size: int, folder: Path, settings: list[str]
) -> Iterator[Loop]:
    """Run a checkout's ``train.py`` with the same shapes and tokens.

    Args:
        checkout: the checkout, whose code is executed; name only one you trust.
        recipe: shapes, batch and optimizer settings.
        data: folder with ``train.bin`` and ``val.bin`` of 16-bit tokens.
        vocab_size: rows of the embedding.
        folder: where to put its data folder and log.
        settings: device, dtype and compile as ``--key=value``.
    """
    command = [sys.executable, "-u", str(script_of(checkout)), *nanogpt_arguments(recipe)]
    tokens = dataset(folder, data, vocab_size)
    command += [*settings, f"--dataset={tokens}", f"--out_dir={folder / 'nanogpt-out'}"]
    environment = shell_environment()
    log = folder / "nanogpt.log"
    with log.open("wb") as errors:
        process = _start(
            command, stdout=subprocess.PIPE, stderr=errors, cwd=checkout, env=environment
        )
    loop = Loop("nanoGPT", process, log)
    threading.Thread(target=_follow, args=(loop,), daemon=True).start()
    try:
        yield loop
    finally:
        loop.end()


def script_of(checkout: Path) -> Path:
    """The ``train.py`` of a checkout of nanoGPT.

    Raises:
        UserError: the checkout has no such file.
    """
    script = checkout / "train.py"
    if not script.is_file():
        raise UserError(f"{script} does not exist", "--against takes a checkout of nanoGPT")
    return script


def dataset(folder: Path, data: Path, vocab_size: int) -> Path:
    """Make a data folder for nanoGPT in ``folder``, with the tokens of ``data``."""
    from nanogpt_cli.interop import nanogpt as interop

    tokens = folder / "tokens"
    tokens.mkdir()
    for split in ("train.bin", "val.bin"):
        (tokens / split).symlink_to((data / split).absolute())
    (tokens / interop.META).write_bytes(interop.vocabulary_alone(vocab_size))
    return tokens


def shell_environment() -> dict[str, str]:
    """The environment without the variables that this program sets for itself."""
    return {k: v for k, v in os.environ.items() if k not in OWN_VARIABLES}


def nanogpt_arguments(recipe: Recipe) -> list[str]:
    """nanoGPT's arguments for a recipe, to run endlessly without evaluations."""
    model, train, optim = recipe.model, recipe.train, recipe.optim
    micro = train.batch_size * model.block_size
    values: dict[str, Any] = {
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_embd": model.n_embd,
        "block_size": model.block_size,
        "bias": model.bias,
        "dropout": model.dropout,
        "batch_size": train.batch_size,
        "gradient_accumulation_steps": recipe.tokens_per_step // micro,
        "learning_rate": optim.lr,
        "beta1": optim.betas[0],
        "beta2": optim.betas[1],
        "weight_decay": optim.weight_decay,
        "grad_clip": optim.grad_clip,
        "warmup_iters": optim.warmup_steps,
        "decay_lr": False,
        "eval_iters": 1,
        "eval_interval": _FOREVER,
        "log_interval": 1,
        "max_iters": _FOREVER,
    }
    return [f"--{key}={value}" for key, value in values.items()]


def _start(
    command: list[str], *, stdout: Any, stderr: Any, cwd: Path, env: dict[str, str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
        start_new_session=True,
    )  # fmt: skip


def _follow(loop: Loop) -> None:
    """Record nanoGPT's step times as it prints them."""
    assert loop.process.stdout is not None
    for line in loop.process.stdout:
        found = _NANOGPT_LINE.match(line.decode("utf-8", "replace"))
        if found:
            loop.times.append((time.time(), float(found[3]) / 1000))
