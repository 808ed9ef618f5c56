"""Flight recorder: the last steps before something went wrong, and the weights it happened with."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from nanogpt_cli import files
from nanogpt_cli.core.checkpoint import MODEL, model_tensors
from nanogpt_cli.core.model import GPT
from nanogpt_cli.events import Layers, Step, encode
from nanogpt_cli.runlog import RunFolder

_STEPS = 50
# Incidents with weights that one run may leave on the disk.
_MOST = 3


class Recorder:
    """Keeps the last steps and writes them beside the weights when asked.

    Args:
        run: where ``incidents/`` lies.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.recent: deque[Step | Layers] = deque(maxlen=_STEPS)

    def note(self, event: Step | Layers) -> None:
        """Remember one step or its statistics."""
        self.recent.append(event)

    def write(self, model: GPT, step: int, facts: dict[str, Any]) -> Path | None:
        """Write ``incidents/step-…/``; ``None`` when the run has enough incidents already.

        ``model.safetensors`` holds the weights before the bad update, ``events.jsonl`` the last
        steps, ``incident.json`` the facts: which step, which windows, what was not finite.
        """
        target = self.run.incidents / f"step-{step:06d}"
        if target.exists() or len(list(self.run.incidents.glob("step-*"))) >= _MOST:
            return None
        with files.readable_os_errors("write the incident", target):
            self.run.incidents.mkdir(exist_ok=True)
            with files.new_folder(target) as folder:
                tensors = {k: t.cpu().contiguous() for k, t in model_tensors(model).items()}
                save_file(tensors, folder / MODEL, metadata={"format": "pt"})
                lines = "".join(encode(event) + "\n" for event in self.recent)
                files.write_text(folder / "events.jsonl", lines)
                files.write_json(folder / "incident.json", facts)
        return target
