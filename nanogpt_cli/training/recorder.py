"""Flight recorder: the last steps before something went wrong, and the weights it happened with."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from nanogpt_cli import files
from nanogpt_cli.machine import distributed
from nanogpt_cli.run.events import Incident, Layers, Step, encode, plain
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.training.checkpoints import tensor_files
from nanogpt_cli.training.checkpoints.checkpoint import MODEL, model_tensors
from nanogpt_cli.training.progress import data_identity
from nanogpt_cli.training.spec import RunSpec
from nanogpt_cli.training.stepper import Measured, Stepper

_STEPS = 50
# Incidents with weights that one run may leave on the disk.
_MOST = 3


class Recorder:
    """Keeps the last steps and, after an incident, writes them beside the weights.

    Args:
        spec: what the run is; without a folder nothing is written.
        stepper: the model, its gradients and its batches.
    """

    def __init__(self, spec: RunSpec, stepper: Stepper) -> None:
        self.spec, self.run, self.stepper = spec, spec.folder, stepper
        self.recent: deque[Step | Layers] = deque(maxlen=_STEPS)
        self.written = 0

    def note(self, event: Step | Layers) -> None:
        """Remember one step or its statistics."""
        self.recent.append(event)

    def record(self, measured: Measured, kind: str, action: str) -> Incident:
        """Write what there is about an incident; the event that tells of it.

        Every rank must call it.

        Args:
            measured: of the step, before its update.
            kind: of the incident, as in ``events.Incident``.
            action: what the run does about it.
        """
        message = f"loss {measured.loss:.6g}, gradient norm {measured.grad_norm:.6g}"
        if kind == "non_finite":
            broken = self.stepper.broken_gradients()
            message += f"; not finite: {', '.join(broken[:3]) or 'the loss alone'}"
        path = self._write(self.run, measured, kind) if self.run else None
        if path is None and action == "recorded":
            action = "noted"  # the disk holds enough of them already
        where = str(path.relative_to(self.run.path)) if path and self.run else ""
        step = measured.index + 1
        return Incident(step=step, kind=kind, message=message, path=where, action=action)

    def _write(self, run: RunFolder, measured: Measured, kind: str) -> Path | None:
        """Write ``incidents/step-…/``; ``None`` when the run has enough incidents already.

        ``model.safetensors`` holds the weights before the step's update, ``events.jsonl`` the last
        steps, ``incident.json`` what happened and which windows of the training split the last
        steps saw. Batches and dropout follow from the recipe's seed and the step, so the step can
        be repeated from this folder and the data: ``nanogpt replay``. Of what is split over ranks,
        each writes its slices.
        """
        stepper = self.stepper
        group, index = stepper.group, measured.index
        target = run.incidents / f"step-{index + 1:06d}"
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
            "windows": self._windows(index),
            "loss_scale": stepper.scaler.get_scale(),
            "model": stepper.model.config.to_dict(),
            "recipe": self.spec.recipe.model_dump(mode="json"),
            "data": data_identity(self.spec.data),
        }
        lines = "".join(encode(event) + "\n" for event in self.recent)
        saying = files.readable_os_errors("write the incident", target)
        with saying, distributed.new_folder(target, group) as folder:
            tensor_files.write(folder / MODEL, model_tensors(stepper.model), group)
            if group.leads:
                files.write_text(folder / "events.jsonl", lines)
                files.write_json(folder / "incident.json", facts)
        return target

    def _windows(self, index: int) -> dict[str, list[int]]:
        """First token of each window by step, of the steps in the log and this one."""
        steps = {e.step - 1 for e in self.recent if isinstance(e, Step)} | {index}
        windows = self.stepper.windows
        slots = range(windows.batch)
        return {str(s + 1): windows.offsets(s, slots).tolist() for s in sorted(steps)}
