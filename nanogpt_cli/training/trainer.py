"""The training loop: a generator of events that any program can drive.

::

    for event in Trainer(recipe, data, run).run():
        ...

A step depends on (recipe, data, step) and the saved tensors alone, so a run that was stopped and
resumed makes the same bits as one that was not. With several processes each rank drives a trainer
of its own, in lockstep; only the first rank's events are meant to be kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from nanogpt_cli.machine import device, parts
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.run import events, history
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training import checkpoint, commands, progress, resuming, retention
from nanogpt_cli.training.alarms import Alarms
from nanogpt_cli.training.milestones import Milestones
from nanogpt_cli.training.progress import Progress
from nanogpt_cli.training.recorder import Recorder
from nanogpt_cli.training.room import check_memory
from nanogpt_cli.training.setup import assemble, check_data, describe, probe_ids
from nanogpt_cli.training.stats import Collector
from nanogpt_cli.training.stepper import Measured

_PAUSE_S = 0.1
_HEARTBEAT_S = 5.0
# Returns to one and the same checkpoint before a run is given up.
_ROLLBACKS = 5
# Events of the log from which the alarms of a resumed run recover their memory.
_RECALLED = 2000
# Steps without an update, one after the other, before a run is given up.
_SKIPS = 20
# The same for overflows in fp16: the scaler halves its factor of 2^16 at each of them.
_OVERFLOWS = 40


class Trainer:
    """Trains one model.

    Args:
        recipe: what to do.
        data: prepared tokens.
        run: where checkpoints and incidents go and commands come from; ``None`` keeps everything
            in memory.
        start_from: weights to begin with instead of the recipe's initialisation.
        group: the processes that share the work, see ``machine/distributed.py``.
        should_stop: asked between steps; true ends the run with a saved checkpoint.
        clock: seconds since the epoch, for the events.

    Raises:
        UserError: the recipe does not fit the data or the machine.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: TokenData,
        run: RunFolder | None = None,
        *,
        start_from: GPT | None = None,
        group: Group = Group(),  # noqa: B008 - frozen
        should_stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_data(recipe, data)
        self.recipe = recipe = recipe.for_processes(group.world)
        self.data, self.folder, self.group = data, run, group
        self.should_stop, self.clock = should_stop, clock
        where = device.choose(recipe.train)
        check_memory(recipe, data, where, group)
        self.stepper = assemble(recipe, data, where, start_from, group)
        self.recipe = recipe = parts.noted(recipe, self.stepper.device, self.stepper.n_parts)
        self.model = self.stepper.model
        self.collector = Collector(
            self.model,
            probe_ids(recipe, data).to(self.stepper.device.device),
            every=recipe.stats.every,
            budget=recipe.stats.budget,
            group=group,
        )
        self.progress = Progress()
        self.milestones = Milestones(
            recipe, data, run, self.stepper, self.collector, self.progress, should_stop
        )
        self.alarms = Alarms(vocab_size=data.vocab_size)
        self.recorder = Recorder(run) if run else None
        self.inbox = commands.Inbox(run if group.leads else None)
        self.notes: list[str] = []
        self._scratch = start_from is None
        self._ending = self._message = ""
        self._paused = False
        self._step_seconds = 0.0
        self._rollbacks: list[int] = []
        self._skips = 0

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint folder of the same run.

        Nothing is written, so a refused resume leaves the run as it was.

        Raises:
            UserError: the checkpoint is of other data or another model, or the recipe differs in
                what a run cannot change.
        """
        if self.folder:
            retention.check_mark(self.folder)
        state = checkpoint.read_state(folder)
        self.notes = resuming.changes(state, self.recipe, source=folder)
        self.progress.take(progress.restore(folder, self.stepper, self.data))
        self.recipe = self.milestones.recipe = parts.restored(self.recipe, state)
        self.stepper.n_parts = parts.choose(self.recipe, self.stepper.device, self.group.world)
        self.milestones.saved_step = self.progress.step
        self._recall()

    def _recall(self) -> None:
        """Let the alarms know what the log says of the steps before, on every rank alike."""
        lines = []
        if self.folder and self.group.leads:
            past = history.newest(self.folder.events, _RECALLED, step=self.progress.step)
            lines = [events.encode(event) for event in past]
        self.alarms = Alarms(vocab_size=self.data.vocab_size)
        for line in self.group.share(lines):
            if event := events.decode(line):
                self.alarms.update(event)

    def run(self) -> Iterator[events.Event]:
        """Train to the end, or until asked to stop; the last event is ``RunEnded``."""
        started = time.monotonic()
        yield from self._emit([self._run_started()])
        yield from self._emit(events.Note(message=note) for note in self.notes)
        if self.folder and self.group.leads:
            retention.restore_mark(self.folder, self.progress.best_step, self.progress.best_loss)
        yield from self._emit(self.milestones.rehearse())
        if self.progress.step:  # an evaluation may have been cut off
            yield from self._emit(self.milestones.reached())
        attention = True
        while not self._ended():
            if attention:
                yield from self._attend()
                attention = False
                continue
            attention = yield from self._advance()
            yield from self._emit(self.milestones.reached())
            # Whoever gave up the evaluation of this step must stop before the next one.
            attention = attention or (self.group.world == 1 and self._hand())
        yield from self._finish(started)

    def _emit(self, found: Iterable[events.Event]) -> Iterator[events.Event]:
        """Stamp events, and let the recorder and the alarms see them."""
        for event in found:
            stamped = replace(event, time=self.clock())
            if self.recorder and isinstance(stamped, events.Step | events.Layers):
                self.recorder.note(stamped)
            yield stamped
            for alarm in self.alarms.update(stamped):
                yield replace(alarm, time=self.clock())

    def _run_started(self) -> events.RunStarted:
        name = self.folder.name if self.folder else self.recipe.run.name
        step, scratch = self.progress.step, self._scratch
        return describe(self.recipe, self.data, self.stepper, name=name, step=step, scratch=scratch)

    def _ended(self) -> str:
        """Why the loop is over; empty while it is not."""
        patience = self.recipe.train.patience
        if self._ending:
            pass
        elif self.progress.step >= self.recipe.train.max_steps:
            self._ending = "finished"
        elif patience and self.progress.evals_without_best >= patience:
            self._ending = "early_stop"
        return self._ending

    def _hand(self) -> bool:
        """Whether this process wants something done between steps."""
        return self.should_stop() or self.inbox.waiting()

    def _advance(self) -> Generator[events.Event, None, bool]:
        """One optimizer step and its events; returns whether some rank wants attention."""
        index = self.progress.step
        started = time.perf_counter()
        lr = self.stepper.optimizers.set_lr(index, self.progress.lr_factor)
        measured = self.stepper.measure(index, attention=self.group.world > 1 and self._hand())
        skip = index in self.progress.skip
        if not skip and not measured.finite:
            skip = yield from self._incident(index, measured)
            if not skip:
                return measured.attention
        elif kind := self.alarms.incident(measured.loss):
            yield from self._record(index, measured, kind, "recorded")
        watched = self.collector.due(index) and not skip
        if watched:
            self.collector.before_update()
        if skip:
            self.stepper.discard()
        else:
            norms = self.stepper.grad_norms() if watched else {}
            self.stepper.apply(measured)
            self.stepper.average.update(index)
            self._skips = 0
        seconds = time.perf_counter() - started
        self._count(seconds if not watched else seconds - self.collector.seconds)
        yield from self._emit([self._step_event(measured, lr, seconds, skip)])
        if watched:
            found = self.collector.after_update(index, norms, self._step_seconds)
            every, cost = self.collector.every, self.collector.cost
            layers = events.Layers(step=index + 1, stats=found, every=every, cost=cost)
            yield from self._emit([layers])
        return measured.attention if self.group.world > 1 else self._hand()

    def _step_event(
        self, measured: Measured, lr: float, seconds: float, skipped: bool
    ) -> events.Step:
        return events.Step(
            step=self.progress.step,
            loss=measured.loss,
            lr=lr,
            grad_norm=measured.grad_norm,
            tokens=self.progress.tokens,
            tokens_per_s=self.recipe.tokens_per_step / seconds,
            step_s=seconds,
            clipped=measured.clipped,
            skipped=skipped,
        )

    def _count(self, seconds: float) -> None:
        self.progress.step += 1
        self.progress.tokens += self.recipe.tokens_per_step
        smooth = 0.9 if self._step_seconds else 0.0
        self._step_seconds = smooth * self._step_seconds + (1 - smooth) * seconds

    def _incident(self, index: int, measured: Measured) -> Generator[events.Event, None, bool]:
        """A loss or gradient that is not finite: record it, and do what the recipe says.

        Returns whether the step is to be counted without an update.
        """
        if self.stepper.scaler.is_enabled() and math.isfinite(measured.loss):
            self._skips += 1
            if self._skips < _OVERFLOWS:
                return True  # fp16 overflow: the scaler lowers its factor, and that is all
        action = self.recipe.train.on_nonfinite
        yield from self._record(index, measured, "non_finite", action)
        if action == "skip" and self._skips < _SKIPS:
            self._skips += 1
            return True
        self.stepper.discard()
        problem = f"{_SKIPS} steps in a row had no update"
        if action == "rollback" and not (problem := self._roll_back(index)):
            yield from self._emit([self._run_started()])
            return False
        if action != "stop":
            note = events.Note(step=index, message=f"given up: {problem}", level="warning")
            yield from self._emit([note])
        self._ending = "non_finite"
        self._message = f"step {index + 1} has no finite loss or gradient"
        return False

    def _record(
        self, index: int, measured: Measured, kind: str, action: str
    ) -> Iterator[events.Event]:
        """Write the flight recorder's folder and say so."""
        broken = self.stepper.broken_gradients()
        message = f"loss {measured.loss:.6g}, gradient norm {measured.grad_norm:.6g}"
        if kind == "non_finite":
            message += f"; not finite: {', '.join(broken[:3]) or 'the loss alone'}"
        path = None
        if self.recorder:
            path = self.recorder.write(self.stepper, index, measured, self.recipe, kind)
        if path is None and action == "recorded":
            action = "noted"  # the disk holds enough of them already
        where = str(path.relative_to(self.folder.path)) if path and self.folder else ""
        incident = events.Incident(
            step=index + 1, kind=kind, message=message, path=where, action=action
        )
        yield from self._emit([incident])

    def _roll_back(self, index: int) -> str:
        """Return to the last checkpoint and leave step ``index`` out; "", or why it cannot be."""
        found = retention.newest_intact(self.folder)[0] if self.folder else None
        folder = self.group.share(str(found) if found else "")
        if not folder:
            return "there is no checkpoint to return to"
        if self._rollbacks.count(index) or len(self._rollbacks) >= _ROLLBACKS:
            return "going on from the last checkpoint did not help"
        skip = self.progress.skip | {index}
        self.restore(Path(folder))
        self.progress.skip |= skip
        self._rollbacks.append(index)
        return ""

    def _attend(self) -> Iterator[events.Event]:
        """Stop or carry out commands, on every rank at once; stays here while paused."""
        quiet_since = time.monotonic()
        while True:
            if self.group.any(self.should_stop()):
                self._ending = self._ending or "stopped"
            for name, argument in self.group.share(self.inbox.take(look=self._paused)):
                yield from self._obey(name, argument)
            if not self._paused or self._ended():
                return
            if time.monotonic() - quiet_since > _HEARTBEAT_S:
                quiet_since = time.monotonic()
                yield from self._emit([events.Heartbeat(step=self.progress.step, doing="paused")])
            time.sleep(_PAUSE_S)

    def _obey(self, name: str, argument: str) -> Iterator[events.Event]:
        """Carry out one command and say what came of it."""
        result = "done"
        if name in ("pause", "resume"):
            self._paused = name == "pause"
        elif name == "checkpoint":
            yield from self._emit(self.milestones.save())
        elif name == "eval":
            yield from self._emit(self.milestones.evaluate())
        elif name == "sample":
            yield from self._emit(self.milestones.sample(argument or None))
        elif name == "stop":
            self._ending = "stopped"
        elif name == "lr":
            result = self._scale_lr(argument)
        else:
            result = "unknown command"
        step = self.progress.step
        answer = events.Command(step=step, name=name, argument=argument, result=result)
        yield from self._emit([answer])

    def _scale_lr(self, argument: str) -> str:
        try:
            self.progress.lr_factor *= commands.factor(argument)
        except ValueError as error:
            return str(error)
        return f"learning rate is now {self.progress.lr_factor:g} times the recipe's"

    def _finish(self, started: float) -> Iterator[events.Event]:
        """Save, evaluate if the run is complete, and say how it ended."""
        if self._ending != "non_finite":
            yield from self._emit(self.milestones.save())
        if self._ending in ("finished", "early_stop"):
            yield from self._emit(self.milestones.complete())
            if self.progress.evaluated_step != self.progress.step:
                self._ending = "stopped"  # during the last evaluation, which a resumed run makes
            elif self.alarms.diverged:
                self._ending = "diverged"
                self._message = "the loss has left the level it had reached and not come back"
        best = self.progress.best_loss
        last = retention.list_steps(self.folder)[-1:] if self.folder else []
        ended = events.RunEnded(
            step=self.progress.step,
            reason=self._ending,
            message=self._message,
            best_val_loss=best if math.isfinite(best) else None,
            checkpoint=f"checkpoints/step-{last[0]:06d}" if last else "",
            seconds=time.monotonic() - started,
        )
        yield from self._emit([ended])
