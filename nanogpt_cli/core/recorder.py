"""Flight recorder: the last steps before something went wrong, and the weights it happened with."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from safetensors.torch import save_file

from nanogpt_cli import files
from nanogpt_cli.core.checkpoint import MODEL, model_tensors
from nanogpt_cli.core.stepper import Measured, Stepper
from nanogpt_cli.events import Layers, Step, encode, plain
from nanogpt_cli.recipe import Recipe
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

    def write(
        self, stepper: Stepper, index: int, measured: Measured, recipe: Recipe
    ) -> Path | None:
        """Write ``incidents/step-…/``; ``None`` when the run has enough incidents already.

        ``model.safetensors`` holds the weights before the bad update, ``events.jsonl`` the last
        steps, ``incident.json`` what was not finite and which windows the step saw.
        """
        target = self.run.incidents / f"step-{index + 1:06d}"
        if target.exists() or len(list(self.run.incidents.glob("step-*"))) >= _MOST:
            return None
        facts = {
            "step": index + 1,
            "loss": plain(measured.loss),
            "grad_norm": plain(measured.grad_norm),
            "gradients": stepper.broken_gradients(),
            "windows": stepper.windows.offsets(index, range(stepper.windows.batch)).tolist(),
            "model": stepper.model.config.to_dict(),
            "recipe": recipe.model_dump(mode="json"),
        }
        tensors = {k: t.cpu().contiguous() for k, t in model_tensors(stepper.model).items()}
        lines = "".join(encode(event) + "\n" for event in self.recent)
        saying = files.readable_os_errors("write the incident", target)
        with saying, files.new_folder(target) as folder:
            save_file(tensors, folder / MODEL, metadata={"format": "pt"})
            files.write_text(folder / "events.jsonl", lines)
            files.write_json(folder / "incident.json", facts)
        return target
