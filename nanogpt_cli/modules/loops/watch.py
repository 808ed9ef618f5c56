"""Layer statistics of any training loop, written into a run folder that the dashboard shows.

::

    watch = ng.Watch(model, "runs/mine", optimizer=optimizer)
    for x, y in batches:
        ...                     # forward, backward, optimizer.step()
        watch.step(loss=loss)
    watch.close()
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
import traceback
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nanogpt_cli.modules.loops import watch_arguments as checked
from nanogpt_cli.modules.loops.watch_forward import ForwardPass
from nanogpt_cli.modules.loops.watch_log import Log
from nanogpt_cli.modules.loops.watch_target import LOST, Inputs, Target
from nanogpt_cli.modules.loops.watch_time import OwnTime
from nanogpt_cli.modules.loops.watch_update import Update
from nanogpt_cli.run import events
from nanogpt_cli.version import __version__

# Steps between two samples at least.
_LEAST = 10


class Watch:
    """Logs loss, learning rate and statistics of every block while a loop of your own trains.

    Statistics are taken on few steps, by hooks that exist only there; other steps pay for one line
    in a file. No value of the training changes, and no random number is drawn. In a job of several
    processes the first one watches, and the calls of the others do nothing.

    Args:
        model: the module that the loop calls, compiled or wrapped in ``DistributedDataParallel``
            as the loop has it.
        folder: the run folder to create; if it exists, ``NAME-2`` or the next free name is created
            instead (see ``path``).
        optimizer: one or several; without them no gradients, updates or learning rates are logged.
        blocks: path of the repeated blocks (``"transformer.h"``), or the modules themselves; by
            default the list of modules of one class that holds the most parameters.
        batch: arguments of a small forward pass, a tuple or a dict. If given, activations are
            those of this batch, in evaluation mode after the step. A compiled model needs such a
            pass, because hooks do not run inside it; by default it is made from two sequences of
            the first batch.
        every: steps between samples; 0 keeps the cost within ``budget``.
        budget: the largest share of the training time that sampling may take: 0.01 is 1 %.
        max_steps: the last step, where it is known; the dashboard then shows what remains.
        tokens_per_step: tokens of a step, of all processes together; by default the size of the
            integer inputs of a step.
        resume: continue the run in ``folder`` after this step.

    Attributes:
        path: the run folder.

    Raises:
        UserError: there are no blocks to be found, the folder cannot be written, or an argument is
            of another kind.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: str | Path,
        *,
        optimizer: Optimizer | Sequence[Optimizer] = (),
        blocks: str | Sequence[nn.Module] = "",
        batch: Inputs | None = None,
        every: int = 0,
        budget: float = 0.01,
        max_steps: int = 0,
        tokens_per_step: int = 0,
        resume: int | None = None,
    ) -> None:
        self.optimizers = checked.optimizers(optimizer)
        self.fixed, self.budget = checked.whole("every", every), checked.share("budget", budget)
        self.every = self.fixed or _LEAST
        self.step_number = 0 if resume is None else checked.whole("resume", resume)
        self.path = checked.folder(folder)
        self._tokens_per_step = checked.whole("tokens_per_step", tokens_per_step)
        max_steps = checked.whole("max_steps", max_steps)
        self.target = Target(model, blocks, batch)
        self._timer = OwnTime(self.target.device)
        self._recent: deque[float] = deque(maxlen=50)
        self._sampled_at = self.step_number
        self._spent = 0.0
        self._forward: ForwardPass | None = None
        self._update: Update | None = None
        self._best = math.inf
        self._told: set[str] = set()
        self._log: Log | None = None
        if self.target.leads:
            self._log = self._open(max_steps, resume is not None)
            self.path = self._log.path
            self._arm()
        self._began = self._last = time.perf_counter()

    def follow(self, optimizer: Optimizer | Sequence[Optimizer]) -> None:
        """Take statistics of these optimizers' steps from the next sample on."""
        self.optimizers = checked.optimizers(optimizer)

    def step(
        self,
        *,
        loss: Tensor | float | None = None,
        lr: float | None = None,
        grad_norm: Tensor | float | None = None,
    ) -> None:
        """Record one step; call it after the optimizer's step, once for all its micro-batches.

        Args:
            loss: mean over the tokens of the step, in nats; a step without one is counted, but not
                drawn.
            lr: the learning rate; by default that of the optimizer's first group.
            grad_norm: the norm of the whole gradient, as ``clip_grad_norm_`` returns it; by default
                it is measured on the steps that are sampled.

        Raises:
            UserError: one of them is not a single number.
        """
        if (log := self._log) is None or log.closed:
            return
        loss = None if loss is None else checked.number("loss", loss)
        lr = None if lr is None else float(checked.number("lr", lr))
        grad_norm = None if grad_norm is None else checked.number("grad_norm", grad_norm)
        self.step_number += 1
        seconds = time.perf_counter() - self._last
        if not self._tokens_per_step:
            self._tokens_per_step = self.target.take_tokens()
        if grad_norm is None and self._update is not None:
            grad_norm = self._update.gradient_norm()
        if loss is not None:
            log.step(self._event(lr, seconds), loss, grad_norm)
        if self._update is None:
            self._recent.append(seconds)
            self._plan()
        else:
            self._sample(log)
        if log.closed:  # it could not be written
            self._release()
        elif self.step_number + 1 >= self._sampled_at + self.every:
            self._arm()
        self._last = time.perf_counter()

    def evaluate(self, *, loss: Tensor | float) -> None:
        """Record a validation loss, in nats per token, of the weights after the last step.

        Raises:
            UserError: ``loss`` is not a single number.
        """
        if self._log is None:
            return
        value = float(checked.number("loss", loss))
        best = value < self._best
        self._best = min(self._best, value)
        self._log.write(events.Eval(step=self.step_number, val_loss=value, best=best))
        self._last = time.perf_counter()  # the evaluation was not part of a step

    def close(self, reason: str = "finished", message: str = "") -> None:
        """Write how the run ended (see ``events.RunEnded``) and take all hooks away."""
        if self._log is None:
            return
        ended = events.RunEnded(
            step=self.step_number,
            reason=reason,
            message=message,
            best_val_loss=self._best if math.isfinite(self._best) else None,
            seconds=time.perf_counter() - self._began,
        )
        self._log.write(ended)
        self._release()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.close()
        elif isinstance(error, (KeyboardInterrupt, GeneratorExit)):  # a generator that was closed
            self.close("stopped")
        else:
            text = "".join(traceback.format_exception(kind, error, trace))
            self.close("error", text[-4000:])

    def _open(self, max_steps: int, resume: bool) -> Log:
        """Create or find the run folder, and write how the run begins."""
        target = self.target
        log = Log(self.path, resume=resume, vocab_size=target.vocab_size)
        log.write(
            events.RunStarted(
                name=log.path.name, step=self.step_number, max_steps=max_steps,
                tokens_per_step=self._tokens_per_step, parameters=target.parameters,
                device=target.device_name, precision=target.precision, host=platform.node(),
                pid=os.getpid(), version=__version__, vocab_size=target.vocab_size,
                n_layer=len(target.blocks), processes=target.processes,
            )
        )  # fmt: skip
        return log

    def _arm(self) -> None:
        """Set the hooks for the next step."""
        target = self.target
        with self._timer():
            there = target.find_again()
        if not there:
            assert self._log is not None
            self._sampled_at = self.step_number
            self._tell(self._log, [LOST])
            return
        if not target.probes:
            self._forward = ForwardPass(target.raw, target.blocks, self._timer)
        self._update = Update(target.blocks, self.optimizers, self._timer)

    def _sample(self, log: Log) -> None:
        """Write the statistics of the step that was just made."""
        update, self._update = self._update, None
        forward, self._forward = self._forward, None
        assert update is not None
        with self._timer():
            if forward is None:
                forward = self.target.run_batch(self._timer)
            forward.remove()
            stats = _to_host({**forward.complete(), **update.complete()})
        for name in ("attn_rms", "mlp_rms"):  # NaN where a block adds something else
            if any(map(math.isnan, stats.get(name, ()))):
                del stats[name]
        self._spent, self._sampled_at = self._timer.take(), self.step_number
        self._plan()
        every, cost = self.every, self._cost()
        log.write(events.Layers(step=self.step_number, stats=stats, every=every, cost=cost))
        self._tell(log, self.target.missing(stats, forward.error, bool(self.optimizers)))

    def _tell(self, log: Log, messages: Iterable[str]) -> None:
        """Write what was not said before."""
        for message in messages:
            if message not in self._told:
                self._told.add(message)
                log.write(events.Note(step=self.step_number, message=message))

    def _plan(self) -> None:
        """Adapt the interval to what the last sample took."""
        if self.fixed or not self._recent:
            return
        typical = statistics.median(self._recent)
        wanted = self._spent / max(self.budget * typical, 1e-12) if self.budget > 0 else math.inf
        self.every = int(min(max(_LEAST, math.ceil(min(wanted, 1e9))), 1_000_000))

    def _cost(self) -> float:
        """Share of the time of all steps that statistics take at the present interval."""
        if not self._recent:
            return 0.0
        return self._spent / (self.every * statistics.median(self._recent))

    def _event(self, lr: float | None, seconds: float) -> events.Step:
        """A step without its loss."""
        if lr is None and self.optimizers:
            lr = float(self.optimizers[0].param_groups[0]["lr"])
        speed = self._tokens_per_step / seconds if self._tokens_per_step else None
        return events.Step(
            step=self.step_number, loss=math.nan, lr=lr, grad_norm=None,
            tokens=self.step_number * self._tokens_per_step, tokens_per_s=speed, step_s=seconds,
        )  # fmt: skip

    def _release(self) -> None:
        for hooks in (self._forward, self._update):
            if hooks is not None:
                hooks.remove()
        self._forward = self._update = None
        self.target.remove()
        log, self._log = self._log, None
        if log is not None:
            log.close()


def _to_host(columns: Mapping[str, Sequence[Tensor]]) -> dict[str, list[float]]:
    """One transfer for all statistics; values rounded to 6 significant digits."""
    if not columns:
        return {}
    device = next(iter(columns.values()))[0].device
    rows = [torch.stack([value.to(device) for value in row]) for row in columns.values()]
    table = torch.stack(rows).tolist()
    return {
        name: [float(f"{value:.6g}") for value in row]
        for name, row in zip(columns, table, strict=True)
    }
