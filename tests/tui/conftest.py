from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import textual.app
import textual.pilot

sys.path.insert(0, str(Path(__file__).parent))

import idle
import recorded


@pytest.fixture(autouse=True)
def waiting_takes_no_longer_than_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pilots wait for the app, not for 20 ms without work in it."""
    monkeypatch.setattr(textual.app, "wait_for_idle", idle.wait_for_idle)
    monkeypatch.setattr(textual.pilot, "wait_for_idle", idle.wait_for_idle)
    monkeypatch.setattr(textual.pilot.Pilot, "_wait_for_screen", idle.wait_for_screen)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: one in progress, one finished, one with many layers and a NaN."""
    root = tmp_path_factory.mktemp("recordings") / "runs"  # no number in a name that is shown
    root.mkdir()
    recorded.write_run(root / "small-shakespeare")
    recorded.write_run(
        root / "small-lr3e-4", lr=3e-4, seed=1, spike=None, steps=3000, max_steps=3000,
        ended="finished",
    )  # fmt: skip
    recorded.write_run(root / "deep", layers=24, seed=2, nan=900, steps=1000)
    return root


@pytest.fixture
def runs(recordings: Path, tmp_path: Path) -> Path:
    """A private copy, to write into."""
    return Path(shutil.copytree(recordings, tmp_path / "runs"))
