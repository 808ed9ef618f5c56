"""A trainer that is killed again and again ends with the bits of one that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fault_driver
import pytest
import toy_run
from programs import LIMIT

from nanogpt_cli import events
from nanogpt_cli.core import checkpoint, retention
from nanogpt_cli.runlog import EventReader, RunFolder

# For the long version: NANOGPT_TEST_KILLS=120 pytest tests/core/test_faults.py
KILLS = int(os.environ.get("NANOGPT_TEST_KILLS", "10"))
STEPS = 12 + 30 * KILLS  # a fast machine makes ten steps or more between two kills


def drive(target: Path, data: Path, kills: int) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, fault_driver.__file__, target, data, str(kills), str(STEPS), "1"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT + 10 * KILLS,
    )
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


@pytest.mark.timeout(300 + 10 * KILLS)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_equals_uninterrupted(tmp_path: Path) -> None:
    data = toy_run.data(tmp_path)
    calm, hammered = RunFolder(tmp_path / "calm"), RunFolder(tmp_path / "hammered")
    drive(calm.path, data.folder, kills=0)
    counts = drive(hammered.path, data.folder, kills=KILLS)
    assert counts["kills"] == KILLS
    assert counts["starts"] == KILLS + 1

    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.EMA):
        one, two = (checkpoint.read_tensors(retention.find(run) / name) for run in (calm, hammered))
        assert toy_run.differing(one, two) == []
    logs = [list(EventReader(run.events).read_all()) for run in (calm, hammered)]
    assert toy_run.losses(logs[1]) == toy_run.losses(logs[0])
    evals = [{(e.step, e.val_loss) for e in toy_run.of_type(log, events.Eval)} for log in logs]
    assert evals[0] == evals[1]
    left = [path.name for path in hammered.checkpoints.iterdir()]
    assert [name for name in left if name.startswith((".tmp", "damaged"))] == []
    sys.stderr.write(f"{counts}\n")
