"""A sample from a run that nobody trains: ``nanogpt sample`` in another process."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from nanogpt_cli.run.events import Sample
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.tui.state.view import RunView

_LENGTH = 200  # tokens, if the recipe does not say
_PATIENCE = 300.0  # seconds


def can(run: RunFolder) -> bool:
    """Whether the run has a checkpoint to sample from."""
    return any(run.checkpoints.glob("step-*"))


def sample(run: RunFolder, view: RunView, prompt: str) -> Sample | str:
    """The text that the run's best checkpoint writes after ``prompt``, or why there is none."""
    command = [sys.executable, "-m", "nanogpt_cli", "sample", "--run", str(run.path), "--json"]
    command += [f"--prompt={prompt}", "--max-new-tokens", str(_length(view))]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PATIENCE
        )
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").split("\n")
            return next((line for line in lines if line.startswith("error:")), lines[0])
        found = json.loads(done.stdout)
        written = found["samples"][0]
        return Sample(
            time=time.time(), step=int(found["step"]), prompt=str(written["prompt"]),
            text=str(written["text"]), temperature=float(found["sampling"]["temperature"]),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError) as error:
        return str(error)


def _length(view: RunView) -> int:
    recipe = view.started.recipe if view.started else {}
    section = recipe.get("sample")
    wanted = section.get("max_new_tokens") if isinstance(section, dict) else None
    return wanted if isinstance(wanted, int) and 0 < wanted <= 2000 else _LENGTH
