"""The run folder that a ``Watch`` writes: its lock, its log, and the alarms that events raise."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_cli import files, shell
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder, fresh_run
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.training.alarms.judge import Alarms

# Seconds for which losses may stay on a GPU: reading one waits for the step.
_FLUSH_S = 1.0
# Advice that names parts of our own trainer is replaced.
_ADVICE = {
    "non_finite": "lower the learning rate or warm up longer",
    "bad_start": "check that the loss is the mean over tokens, then the initialisation "
    "(ng.inspect): the logits begin too large",
    "overfitting": "stop here, use more data, dropout or weight decay",
}


class Log:
    """Events of one run folder.

    Args:
        folder: an absolute path, to be created; ``NAME-2`` and so on where it exists.
        resume: write into ``folder`` itself.
        vocab_size: for the alarms; 0 where there is no vocabulary.

    Attributes:
        closed: whether nothing is written any more: the disk failed, or ``close`` was called.

    Raises:
        UserError: the folder cannot be created or written, another process writes to it, or there
            is no run to resume.
    """

    def __init__(self, folder: Path, *, resume: bool, vocab_size: int) -> None:
        if resume and not (folder / "events.jsonl").is_file():
            raise UserError(
                f"there is no run at {folder} to continue", "without resume= a new one begins"
            )
        with files.readable_os_errors("create the run folder", folder):
            run = RunFolder(folder) if resume else fresh_run(folder.name, folder.parent)
        self.path, self.closed = run.path, False

        def refuse() -> None:
            raise UserError(
                f"run {run.name} is being written by another process",
                f"choose another folder, or watch that one: {shell.hint('watch', run.path)}",
            )

        with contextlib.ExitStack() as stack:
            stack.enter_context(files.locked(run.lock, refuse))
            self._writer = stack.enter_context(EventWriter(run.events))
            self._stack = stack.pop_all()
        self._alarms = Alarms(vocab_size=vocab_size)
        self._waiting: list[tuple[events.Step, Tensor]] = []
        self._flushed = time.perf_counter()

    def step(
        self, event: events.Step, loss: Tensor | float, grad_norm: Tensor | float | None
    ) -> None:
        """Write a step; what lies on a GPU is read later, several steps at once."""
        values = [loss, 0.0 if grad_norm is None else grad_norm]
        device = next((x.device for x in values if isinstance(x, Tensor)), torch.device("cpu"))
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        pair = torch.stack(
            [torch.as_tensor(x, dtype=dtype, device=device).detach().reshape(())
             for x in values]
        )  # fmt: skip
        event = replace(event, time=time.time(), grad_norm=None if grad_norm is None else math.nan)
        self._waiting.append((event, pair))
        if device.type == "cpu" or time.perf_counter() - self._flushed > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write the steps whose losses were not read yet, with one transfer for all."""
        waiting, self._waiting = self._waiting, []
        self._flushed = time.perf_counter()
        if waiting:
            rows = torch.stack([pair for _, pair in waiting]).tolist()
            for (event, _), (loss, norm) in zip(waiting, rows, strict=True):
                known = event.grad_norm is not None
                self._write(replace(event, loss=loss, grad_norm=norm if known else None))

    def write(self, event: events.Event) -> None:
        """Write an event after the steps before it."""
        self.flush()
        self._write(replace(event, time=time.time()))

    def _write(self, event: events.Event) -> None:
        """Append an event and the alarms it raises; a disk that fails ends the watching only."""
        if self.closed:
            return
        try:
            self._writer(event)
            for alarm in self._alarms.update(event):
                advice = _ADVICE.get(alarm.kind, alarm.advice) if alarm.active else alarm.advice
                self._writer(replace(alarm, time=event.time, advice=advice))
        except OSError as error:
            warnings.warn(f"{self.path} is not written any more: {error}", stacklevel=4)
            self.close()

    def close(self) -> None:
        """Put the log on the disk and free the folder."""
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(OSError):
            self._writer.sync()
        self._stack.close()
