"""Flight recorder: the last steps before something went wrong, and the weights it happened with."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from nanogpt_cli import files
from nanogpt_cli.machine import distributed
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.run.events import Layers, Step, encode, plain
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.training import tensor_files
from nanogpt_cli.training.checkpoint import MODEL, model_tensors
from nanogpt_cli.training.stepper import Measured, Stepper

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
        self.written = 0

    def note(self, event: Step | Layers) -> None:
        """Remember one step or its statistics."""
        self.recent.append(event)

    def write(self, stepper: Stepper, measured: Measured, recipe: Recipe, kind: str) -> Path | None:
        """Write ``incidents/step-…/``; ``None`` when the run has enough incidents already.

        ``model.safetensors`` holds the weights before the step's update, ``events.jsonl`` the last
        steps, ``incident.json`` what happened and which windows of the training split the last
        steps saw. Batches and dropout follow from the recipe's seed and the step, so the step can
        be made again from this folder and the data: ``nanogpt replay``.

        Every rank must call it; what is split over ranks is written by all of them.
        """
        group, index = stepper.group, measured.index
        target = self.run.incidents / f"step-{index + 1:06d}"
        if self.written >= _MOST:
            return None
        self.written += 1
        if group.share(target.exists()):
            return None
        slot = "slot" if stepper.device.eager_cpu else "first slot"
        facts = {
            "step": index + 1,
            "kind": kind,
            "loss": plain(measured.loss),
            "grad_norm": plain(measured.grad_norm),
            "gradients": stepper.broken_gradients(),
            "dropout_seeded_by": [stepper.windows.seed, "dropout", index, slot],
            "windows": self._windows(stepper, index),
            "loss_scale": stepper.scaler.get_scale(),
            "model": stepper.model.config.to_dict(),
            "recipe": recipe.model_dump(mode="json"),
        }
        lines = "".join(encode(event) + "\n" for event in self.recent)
        saying = files.readable_os_errors("write the incident", target)
        with saying, distributed.new_folder(target, group) as folder:
            tensor_files.write(folder / MODEL, model_tensors(stepper.model), group)
            if group.leads:
                files.write_text(folder / "events.jsonl", lines)
                files.write_json(folder / "incident.json", facts)
        return target

    def _windows(self, stepper: Stepper, index: int) -> dict[str, list[int]]:
        """First token of each window by step, of the steps in the log and this one."""
        steps = {e.step - 1 for e in self.recent if isinstance(e, Step)} | {index}
        slots = range(stepper.windows.batch)
        return {str(s + 1): stepper.windows.offsets(s, slots).tolist() for s in sorted(steps)}
