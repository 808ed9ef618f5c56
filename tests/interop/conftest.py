"""A run folder for the tests of this room, and runtimes without a process for each."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from programs import LIMIT
from tiny import make_run

from nanogpt_cli.interop import runtimes, verify
from nanogpt_cli.run.folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder with one checkpoint of a character model without biases."""
    return make_run(tmp_path / "runs" / "tiny")


@pytest.fixture
def runtimes_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The runtimes work in this process, which saves three seconds of imports an artefact.

    llama.cpp has one all the same, whose server never ends, and ``torch.export``, whose loader
    needs a process that has exported nothing. That every runtime works in a process of its own is
    shown by ``test_artefact_computes_what_the_model_computes``.
    """
    transformers = pytest.importorskip("transformers")

    def carried_out(
        command: list[str], *, timeout: float, **settings: Any
    ) -> subprocess.CompletedProcess[bytes]:
        *_, runtime, artefact, folder = command
        if runtime not in ("transformers", "onnxruntime"):
            return subprocess.run(command, timeout=min(timeout, LIMIT), **settings)
        runtimes.RUNTIMES[runtime](Path(artefact), runtimes.Request(Path(folder)))
        return subprocess.CompletedProcess(command, 0, b"", b"")

    stand_in = SimpleNamespace(run=carried_out, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(verify, "subprocess", stand_in)
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)
