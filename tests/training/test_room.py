"""Too little memory, wherever in a run it shows, ends in a line that says what to set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy_run

from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.training import drive, evaluate
from nanogpt_cli.training.forecasts import plan
from nanogpt_cli.training.optim import Optimizers
from nanogpt_cli.training.stepper import Stepper
from nanogpt_cli.training.studies import lr_find
from nanogpt_cli.training.trainer import Trainer

DEVICE = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nGPU 0 has …")
HOST = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
LIBRARY = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def run_out(folder: Path, **train: object) -> UserError:
    """What a run that needs more memory than it gets says, once driven as the command does."""
    run, recipe = RunFolder(folder), toy_run.recipe(train=train)
    data = toy_run.data(folder)
    with pytest.raises(UserError) as caught:
        for _ in drive.drive(run, recipe, lambda: Trainer(recipe, data, run), resume=False):
            pass
    last = list(EventReader(run.events).read_all())[-1]
    assert isinstance(last, events.RunEnded)
    assert last.message == str(caught.value)  # in its log as well it is a sentence
    return caught.value


@pytest.mark.parametrize("error", [DEVICE, HOST, LIBRARY, MemoryError()])
@pytest.mark.parametrize(
    ("place", "name"),
    [
        (Stepper, "_backward"),  # the first step
        (Optimizers, "__init__"),  # before it
        (evaluate, "_losses"),  # later
    ],
)
def test_it_is_put_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: object, name: str, error: Exception
) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(place, name, lacking)
    found = run_out(tmp_path, parts=1)
    assert "a micro-batch of 4 sequences does not fit into the memory of cpu" in found.message
    assert "\n" not in found.message
    assert found.hint == "set train.batch_size = 2"


@pytest.mark.parametrize(
    ("size", "step", "forecast", "hint"),
    [
        (8, 128, 8, "set train.batch_size = 4"),  # as the forecast had let it pass
        (8, 128, 2, "set train.batch_size = 2"),
        (6, 192, 6, "set train.batch_size = 3"),
        (3, 144, 9, "set train.batch_size = 1"),
        (1, 128, 8, "use a smaller model or block_size"),
        (8, 128, 0, "use a smaller model or block_size"),
    ],
)
def test_the_size_that_is_proposed_fits_and_divides_the_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    step: int,
    forecast: int,
    hint: str,
) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise DEVICE

    monkeypatch.setattr(Stepper, "_backward", lacking)
    monkeypatch.setattr(plan, "largest_micro_batch", lambda *_: forecast)
    found = run_out(tmp_path, parts=1, batch_size=size, tokens_per_step=step)
    assert found.hint == hint
    if "batch_size =" in hint:
        toy_run.recipe(train={"batch_size": int(hint.split()[-1]), "tokens_per_step": step})


def test_other_errors_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Stepper, "_backward", broken)
    trainer = Trainer(toy_run.recipe(train={"parts": 1}), toy_run.data(tmp_path))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        toy_run.run(trainer)


def test_trying_learning_rates_says_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise DEVICE

    monkeypatch.setattr(Stepper, "_backward", lacking)
    recipe = toy_run.recipe(train={"parts": 1})
    with pytest.raises(UserError, match="does not fit into the memory"):
        next(lr_find.sweep(recipe, toy_run.data(tmp_path)))
