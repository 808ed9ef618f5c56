"""A trainer that is interrupted again and again leaves what one leaves that was let alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fault_driver
import pytest
import toy_run

from nanogpt_cli.run import events, history
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.training import checkpoint, retention

# Each is interrupted at moments of its own. Two are in every suite, the others in the slow one.
RUNS = [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))]
INTERRUPTIONS, STEPS = 6, 48

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def drive(target: Path, data: Path, interruptions: int, seed: int) -> dict[str, int]:
    command = [sys.executable, fault_driver.__file__, target, data, interruptions, STEPS, seed]
    done = subprocess.run(
        list(map(str, command)),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


def story(run: RunFolder) -> list[tuple[Any, ...]]:
    """Everything a run told that is not a matter of time or of how often it was resumed."""
    told: list[tuple[Any, ...]] = []
    for event in history.effective(EventReader(run.events).read_all()):
        match event:
            case events.Step(step=step):
                told.append(
                    (step, "step", event.loss, event.lr, event.grad_norm, event.tokens,
                     event.clipped, event.skipped)
                )  # fmt: skip
            case events.Eval(step=step):
                told.append((step, "eval", event.val_loss, event.bits_per_byte, event.best))
            case events.Sample(step=step):
                told.append((step, "sample", event.prompt, event.text))
            case events.Layers(step=step) if event.stats:
                told.append((step, "layers", repr(event.stats)))
            case events.Alarm(step=step) if event.kind != "slow":
                told.append((step, "alarm", event.kind, event.layer, event.active))
            case events.Incident(step=step):
                told.append((step, "incident", event.kind))
    return sorted(told, key=lambda item: (item[0], item[1]))


def memory(run: RunFolder) -> dict[str, Any]:
    """What the last checkpoint remembers of the run besides its tensors."""
    state = checkpoint.verify(retention.find(run))
    return {key: state[key] for key in ("step", "tokens", "progress")}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Path]:
    """A run that nobody interrupts, and the folder of its data."""
    folder = tmp_path_factory.mktemp("calm")
    data = toy_run.data(folder)
    run = RunFolder(folder / "run")
    drive(run.path, data.folder, 0, 0)
    return run, data.folder


@pytest.mark.parametrize("seed", RUNS)
def test_interrupted_at_random_moments_equals_uninterrupted(
    tmp_path: Path, calm: tuple[RunFolder, Path], seed: int
) -> None:
    expected, data = calm
    hammered = RunFolder(tmp_path / "hammered")
    counts = drive(hammered.path, data, INTERRUPTIONS, seed)
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.EMA):
        one, two = (checkpoint.read_tensors(retention.find(r) / name) for r in (expected, hammered))
        assert toy_run.differing(one, two) == []
    assert story(hammered) == story(expected)
    assert memory(hammered) == memory(expected)
    assert retention.best_step(hammered) == retention.best_step(expected) is not None
    left = [path.name for path in hammered.checkpoints.iterdir()]
    assert [name for name in left if name.startswith((".tmp", "damaged"))] == []
    sys.stderr.write(f"{counts}\n")
