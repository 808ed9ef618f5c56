"""``nanogpt bench startup``: measure the start-up time of the program."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nanogpt_cli import shell
from nanogpt_cli.bench import history
from nanogpt_cli.cli import console, options
from nanogpt_cli.errors import UserError

_PROGRAM = (sys.executable, "-m", "nanogpt_cli")
# Time limits in seconds; for training, the time of importing torch is subtracted.
LIMITS = {"nanogpt --help": 0.3, "nanogpt recipes": 0.5, "to the first step": 2.0}


def register(group: typer.Typer) -> None:
    """Add ``startup`` to the group of benchmarks."""
    group.command(name="startup")(bench_startup)


def bench_startup(
    recipe: Annotated[str, typer.Option("--recipe", help="The recipe to train.")] = "small",
    repeats: Annotated[int, typer.Option(min=1, help="Turns; medians are shown.")] = 5,
    out: history.History = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure start-up: help, the list of recipes, and training to its first step.

    Training is compared with a bare import of torch in the same turns. Data that is not prepared
    yet is prepared first.
    """
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.text import prepare

    chosen = recipe_files.load(recipe).recipe
    prepare.ensure(chosen.data.model_dump(), report=console.say)
    load = os.getloadavg()[0]
    contenders: dict[str, Callable[[], float]] = {
        "nanogpt --help": lambda: _run(*_PROGRAM, "--help"),
        "nanogpt recipes": lambda: _run(*_PROGRAM, "recipes"),
        "import torch": lambda: _run(sys.executable, "-c", "import torch"),
        "nanogpt train": lambda: _first_step(recipe),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for name, work in contenders.items():
        console.say(f"warming up: {name}")
        work()
    for turn in range(repeats):
        console.say(f"turn {turn + 1} of {repeats}")
        for name, work in contenders.items():
            times[name].append(work())
    result = _result(times, load)
    if not as_json:
        _show(result)
    history.finish("startup", result, out, as_json=as_json)
    console.next_command(shell.command("train", recipe))


def _run(*command: str) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command[1:])} failed", done.stderr.decode()[-300:])
    return time.perf_counter() - started


def _first_step(recipe: str) -> float:
    """Seconds from launching ``nanogpt train`` until its first step is in the log."""
    with tempfile.TemporaryDirectory(prefix="nanogpt-bench-") as folder:
        command = [*_PROGRAM, "train", recipe, "--out", folder]
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            while not any(_stepped(log) for log in Path(folder).glob("*/events.jsonl")):
                if process.poll() is not None:
                    assert process.stderr is not None
                    raise UserError("the trainer ended", process.stderr.read().decode()[-300:])
                time.sleep(0.005)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.communicate()


def _stepped(log: Path) -> bool:
    return b'{"type":"step",' in log.read_bytes()


def _result(times: dict[str, list[float]], load: float) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    medians["to the first step"] = medians["nanogpt train"] - medians["import torch"]
    return {
        "seconds": medians,
        "spread": {name: [min(values), max(values)] for name, values in times.items()},
        "limits": LIMITS,
        "within": {name: medians[name] <= limit for name, limit in LIMITS.items()},
        "load": load,
    }


def _show(result: dict[str, Any]) -> None:
    table = console.simple_table("start-up", ("", "seconds", "from", "to", "limit", ""))
    for name, seconds in result["seconds"].items():
        low, high = result["spread"].get(name, (None, None))
        limit = result["limits"].get(name)
        table.add_row(
            name if name in result["spread"] else f"{name}, beyond import torch",
            f"{seconds:.2f}",
            "" if low is None else f"{low:.2f}",
            "" if high is None else f"{high:.2f}",
            "" if limit is None else f"{limit:.1f}",
            "" if limit is None else ("✓" if seconds <= limit else "above"),
        )
    console.stdout().print(table)
    console.say(f"load {result['load']:.1f} on {os.cpu_count()} CPUs at the start")
