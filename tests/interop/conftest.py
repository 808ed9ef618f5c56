"""A run folder for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import make_run

from nanogpt_cli.run.folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder with one checkpoint of a character model without biases."""
    return make_run(tmp_path / "runs" / "tiny")
