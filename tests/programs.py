"""Programs that tests start: none is waited for without a limit, and none outlives its test."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, AnyStr

import pytest

from nanogpt_cli import cli

LIMIT = 120.0  # seconds; the slowest takes a quarter of it on two busy cores
_started: list[subprocess.Popen[Any]] = []


def nanogpt(*words: str) -> int:
    """Run the program in this process, as ``nanogpt WORDS`` would; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["nanogpt", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code is None or isinstance(ended.value.code, int)
    return ended.value.code or 0


def as_ranks(count: int, script: str | Path, *arguments: str | Path) -> list[str]:
    """A command that runs a script as so many ranks of one job, without PyTorch's launcher."""
    ranks = Path(__file__).with_name("forked_ranks.py")
    return [sys.executable, *map(str, (ranks, count, script, *arguments))]


def start(command: list[str], **settings: Any) -> subprocess.Popen[Any]:
    """``subprocess.Popen`` with pipes for what the program writes; it ends with the test."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **{**pipes, **settings})
    _started.append(process)
    return process


def finish(process: subprocess.Popen[AnyStr]) -> tuple[AnyStr, AnyStr]:
    """What a program has written to stdout and stderr when it ends."""
    return process.communicate(timeout=LIMIT)


def until(found: Callable[[], object], process: subprocess.Popen[Any]) -> None:
    """Wait for something that ``process`` does."""
    deadline = time.monotonic() + LIMIT
    while not found():
        assert process.poll() is None, "the program has ended"
        assert time.monotonic() < deadline, "the program never came to it"
        time.sleep(0.02)


def end_all() -> None:
    """Kill what a test has left running, which is only a test that failed."""
    for process in _started:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=LIMIT)
    _started.clear()
