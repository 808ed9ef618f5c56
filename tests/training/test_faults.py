"""A trainer that is interrupted again and again leaves what one leaves that was let alone."""

from __future__ import annotations

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
from nanogpt_cli.training.checkpoints import checkpoint, retention

# Each seed is a run that is interrupted at moments of its own.
SEEDS = [
    (0,),
    *(pytest.param((n, n + 1, n + 2), marks=pytest.mark.slow) for n in range(1, 19, 3)),
]
INTERRUPTIONS, STEPS = 6, 48

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def drive(folder: Path, data: Path, seeds: tuple[int, ...]) -> str:
    """Runs in ``calm`` and ``seed-N``; says for each seed how many interruptions hit what."""
    command = [sys.executable, fault_driver.__file__, folder, data, INTERRUPTIONS, STEPS, *seeds]
    done = subprocess.run(
        list(map(str, command)),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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


@pytest.mark.parametrize("seeds", SEEDS)
def test_interrupted_at_random_moments_equals_uninterrupted(
    tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    counts = drive(tmp_path, toy_run.data(tmp_path).folder, seeds)
    expected = RunFolder(tmp_path / "calm")
    for seed in seeds:
        hammered = RunFolder(tmp_path / f"seed-{seed}")
        for name in (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.EMA):
            one, two = (
                checkpoint.read_tensors(retention.find(r) / name) for r in (expected, hammered)
            )
            assert toy_run.differing(one, two) == []
        assert story(hammered) == story(expected)
        assert memory(hammered) == memory(expected)
        assert retention.best_step(hammered) == retention.best_step(expected) is not None
        left = [path.name for path in hammered.checkpoints.iterdir()]
        assert [name for name in left if name.startswith((".tmp", "damaged"))] == []
    sys.stderr.write(counts)
