"""How the cost of training grows with a model's shape: one shape, measured."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nanogpt_cli import host
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training import batches, progress
from nanogpt_cli.training.batches import Windows
from nanogpt_cli.training.progress import Progress
from nanogpt_cli.training.setup import assemble
from nanogpt_cli.training.spec import resolve
from nanogpt_cli.training.stepper import Stepper

_WARM_STEPS = 2


def pace(recipe: Recipe, data: TokenData, seconds: float) -> dict[str, Any]:
    """Tokens a second and the memory of some steps of a recipe.

    Args:
        recipe: what is trained.
        data: prepared tokens.
        seconds: about how long to measure.

    Returns:
        ``tokens_per_s`` by the median step, ``parameters``, and ``peak_bytes``: on GPUs of the
        allocator, on CPUs of the whole process, so measure each shape in a process of its own.
    """
    stepper = assemble(resolve(recipe, data))
    took: list[float] = []
    while len(took) < _WARM_STEPS + 3 or sum(took) < seconds:
        started = time.perf_counter()
        step(stepper, len(took))
        took.append(time.perf_counter() - started)
    return {
        "parameters": stepper.model.n_parameters(),
        "tokens_per_s": recipe.tokens_per_step / statistics.median(took[_WARM_STEPS:]),
        "peak_bytes": _peak_bytes(stepper),
    }


def checkpoint_seconds(recipe: Recipe, data: TokenData, repeats: int = 3) -> dict[str, Any]:
    """Median seconds to write a whole checkpoint, optimizer included, after one step.

    Returns:
        ``seconds``, ``bytes`` and ``parameters``.
    """
    spec = resolve(recipe, data)
    stepper = assemble(spec)
    step(stepper, 0)
    took = []
    with tempfile.TemporaryDirectory(prefix="nanogpt-bench-", dir=Path.cwd()) as name:
        for repeat in range(repeats):
            folder = RunFolder(Path(name) / str(repeat))
            folder.path.mkdir()
            started = time.perf_counter()
            saved = progress.save(folder, stepper, spec, Progress())
            took.append(time.perf_counter() - started)
        size = sum(file.stat().st_size for file in saved.iterdir())
    return {
        "parameters": stepper.model.n_parameters(),
        "seconds": statistics.median(took),
        "bytes": size,
    }


def data_seconds(recipe: Recipe, data: TokenData, steps: int = 50) -> float:
    """Median seconds to find and fetch the windows of a step."""
    T = recipe.model.block_size
    batch = recipe.tokens_per_step // T
    windows = Windows(recipe.run.seed, len(data.train), T, batch, recipe.data.order)
    took = []
    for number in range(steps):
        started = time.perf_counter()
        batches.fetch(data.train, windows.offsets(number, range(batch)), T)
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def step(stepper: Stepper, number: int) -> None:
    """One whole optimizer step, waited for."""
    stepper.step(number)
    stepper.device.synchronize()


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "pace": pace,
    "checkpoint": checkpoint_seconds,
}


def _peak_bytes(stepper: Stepper) -> int:
    if stepper.device.device.type == "cuda":
        return torch.cuda.max_memory_allocated(stepper.device.device)
    return host.peak_bytes()
