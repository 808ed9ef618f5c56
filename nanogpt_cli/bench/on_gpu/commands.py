"""Running ``nanogpt`` itself as a user does, and reading what a run has logged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from nanogpt_cli import shell
from nanogpt_cli.run import events
from nanogpt_cli.run.follow import EventReader

_SHOWN = 300


def command(
    *words: str, codes: Collection[int] = (0,), environment: Mapping[str, str] | None = None
) -> str:
    """Run ``nanogpt`` with these words; returns what it writes to stdout.

    What it writes to stderr goes to this process's own. There is no time limit, because the item
    has one.

    Raises:
        RuntimeError: its exit code is not among ``codes``.
    """
    done = subprocess.run(
        [sys.executable, "-m", "nanogpt_cli", *words],
        env=os.environ | (environment or {}), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, errors="replace", check=False,
    )  # fmt: skip
    sys.stderr.write(done.stderr)
    if done.returncode not in codes:
        said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        last = (said or done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise RuntimeError(
            f"nanogpt {words[0]} ended with exit code {done.returncode}: {last[:_SHOWN]}"
        )
    return done.stdout


def settings(sets: Collection[str]) -> list[str]:
    """The words ``--set KEY=VALUE …``."""
    return list(map(str, shell.settings(sets)))


def log(run: Path) -> list[events.Event]:
    """The events of a run."""
    return EventReader(run / "events.jsonl").read_all()


def losses(run: Path) -> list[float]:
    """The loss of each step of a run."""
    return [event.loss for event in log(run) if isinstance(event, events.Step)]


def notes(run: Path) -> list[str]:
    """What a run noted about its device when it started."""
    return [n for e in log(run) if isinstance(e, events.RunStarted) for n in e.notes]
