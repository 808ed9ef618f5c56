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
    process = subprocess.Popen(
        [sys.executable, "-m", "nanogpt_cli", *words],
        env=os.environ | (environment or {}), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    # Unlike ``run`` this does not kill the command at Ctrl-C, which reaches it as well: it may
    # have started programs that it has to end.
    with process:
        out, said = process.communicate()
    sys.stderr.write(said)
    if process.returncode not in codes:
        errors = [line for line in said.splitlines() if line.startswith("error:")]
        last = (errors or said.strip().splitlines() or ["it wrote nothing"])[-1]
        raise RuntimeError(
            f"nanogpt {words[0]} ended with exit code {process.returncode}: {last[:_SHOWN]}"
        )
    return out


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
