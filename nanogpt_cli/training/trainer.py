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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nanogpt_cli.errors import UserError
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.machine.ranks import readable_losses
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.run import events, history
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training import progress, resuming, step_times
from nanogpt_cli.training.alarms.judge import Alarms
from nanogpt_cli.training.causes.live import Origin
from nanogpt_cli.training.checkpoints import checkpoint as checkpoints
from nanogpt_cli.training.checkpoints import retention
from nanogpt_cli.training.commands import Commands
from nanogpt_cli.training.forecasts.room import check_memory, readable_memory
from nanogpt_cli.training.hooks import (
    Checkpoints,
    Evaluations,
    Hook,
    Samples,
    Statistics,
    rehearse,
)
from nanogpt_cli.training.progress import Progress
from nanogpt_cli.training.recorder import Recorder
from nanogpt_cli.training.setup import assemble, describe, probe_ids
from nanogpt_cli.training.spec import resolve
from nanogpt_cli.training.starting import Start
from nanogpt_cli.training.state import RunState
from nanogpt_cli.training.stats import Collector
from nanogpt_cli.training.stepper import Measured
from nanogpt_cli.user_input import whole

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
# The command, in the log, that leaves a step's update out.
_SKIP = "skip-step"


class Trainer:
    """Trains one model.

    Args:
        recipe: what to do.
        data: prepared tokens.
        run: where checkpoints and incidents go and commands come from; ``None`` keeps everything
            in memory.
        checkpoint: folder of the checkpoint to go on from. Nothing is written before ``run``, so a
            resume that is refused leaves the run as it was.
        start: weights to begin with instead of the recipe's initialisation.
        group: the processes that share the work, see ``machine/distributed.py``.
        should_stop: asked between steps; true ends the run with a saved checkpoint.
        skip: steps (from 1) whose update is left out. Log and checkpoints remember them.
        clock: seconds since the epoch, for the events.

    Raises:
        UserError: the recipe does not fit the data, the machine or the checkpoint.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: TokenData,
        run: RunFolder | None = None,
        *,
        checkpoint: Path | None = None,
        start: Start | None = None,
        group: Group = Group(),  # noqa: B008 - frozen
        should_stop: Callable[[], bool] = lambda: False,
        skip: Sequence[int] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        if run and checkpoint:
            retention.check_mark(run)
        saved = checkpoints.read_state(checkpoint) if checkpoint else None
        self.notes = resuming.changes(saved, recipe, group, source=checkpoint) if saved else []
        self.spec = spec = resolve(recipe, data, folder=run, group=group, state=saved)
        self.group, self.should_stop, self.clock = group, should_stop, clock
        check_memory(spec)
        if start and (note := start.note(spec.config)):
            self.notes.append(note)
        self.stepper = stepper = assemble(spec, start)
        self.model = stepper.model
        self.state = state = RunState()
        self.collector = Collector(
            self.model,
            probe_ids(spec).to(stepper.device.device),
            stepper.device,
            every=spec.recipe.stats.every,
            budget=spec.recipe.stats.budget,
            group=group,
        )
        shared = (spec, stepper, state)
        self.checkpoints = Checkpoints(*shared)
        self.evaluations = Evaluations(*shared, self.checkpoints, self.collector, should_stop)
        self.samples = Samples(*shared)
        acting = (self.checkpoints, self.evaluations, self.samples)
        self.commands = Commands(*shared, *acting)
        self.hooks: list[Hook] = [
            Statistics(*shared, self.collector), self.checkpoints, self.evaluations, self.samples,
        ]  # fmt: skip
        self.alarms = Alarms(data.vocab_size, len(data.train))
        self.origin = Origin()
        self.recorder = Recorder(spec, stepper)
        if start:
            self.progress.begun_from = start.label
        if checkpoint:
            self._restore(checkpoint)
        self._skip = sorted(set(skip))
        self._check_skip()
        self.progress.skip |= {step - 1 for step in self._skip}

    def _check_skip(self) -> None:
        done, last = self.progress.step, self.recipe.train.max_steps
        for step in self._skip:
            if step <= done:
                raise UserError(
                    f"step {step} cannot be skipped: the run resumes after step {done}",
                    f"resume from an earlier checkpoint: --before {step}",
                )
            if step > last:
                raise UserError(
                    f"step {step} cannot be skipped: the run has {last} steps",
                    "name one of its steps",
                )

    @property
    def recipe(self) -> Recipe:
        """The recipe as it is carried out."""
        return self.spec.recipe

    @property
    def progress(self) -> Progress:
        """Where the run is."""
        return self.state.progress

    def _restore(self, folder: Path) -> None:
        """Take tensors, progress and the alarms' memory from a checkpoint; nothing is written."""
        self.state.progress = progress.restore(folder, self.stepper, self.spec.data)
        self.state.saved_step = self.progress.step
        lines = []
        if self.spec.folder and self.group.leads:
            past = history.newest(self.spec.folder.events, _RECALLED, step=self.progress.step)
            lines = [events.encode(event) for event in past]
        self.alarms = Alarms(self.spec.data.vocab_size, len(self.spec.data.train))
        for line in self.group.share(lines):  # the alarms of all ranks must agree
            if event := events.decode(line):
                self.alarms.update(event)
                self.origin.note(event)
                self.progress.skip |= _asked_to_skip(event)

    def run(self) -> Iterator[events.Event]:
        """Train to the end, or until asked to stop; the last event is ``RunEnded``.

        Raises:
            UserError: there is too little memory, or another process of the run is gone.
        """

        def hint() -> str:
            return resuming.how_to_go_on(self.spec.folder, self.group)

        with readable_memory(self.spec), readable_losses(self.group, hint):
            yield from self._run()

    def _run(self) -> Iterator[events.Event]:
        started = time.monotonic()
        yield from self._emit([self._run_started()])
        yield from self._emit(events.Note(message=note) for note in self.notes)
        yield from self._emit(
            events.Command(
                step=self.progress.step, name=_SKIP, argument=str(step),
                result="its update will be left out",
            )
            for step in self._skip
        )  # fmt: skip
        yield from self._emit(self._prepare())
        control = True
        while not self._ended():
            if control:
                yield from self._take_control()
                control = False
                continue
            control = yield from self._advance()
        yield from self._finish(started)

    def _prepare(self) -> Iterator[events.Event]:
        """What comes before the first step, or before the next one of a resumed run."""
        folder, spec = self.spec.folder, self.spec
        if folder and self.group.leads:
            retention.restore_mark(folder, self.progress.best_step, self.progress.best_loss)
        yield from rehearse(spec, self.stepper, self.state, self.collector, self.samples)
        if self.progress.step:  # the crash or stop may have come before what was due then
            for hook in self.hooks:
                yield from hook.after_step(None)

    def _emit(self, found: Iterable[events.Event]) -> Iterator[events.Event]:
        """Stamp events, and let the recorder and the alarms see them."""
        for event in found:
            stamped = replace(event, time=self.clock())
            if isinstance(stamped, events.Step | events.Layers):
                self.recorder.note(stamped)
            yield stamped
            self.origin.note(stamped)
            for alarm in self.alarms.update(stamped):
                yield replace(self.origin.named(alarm), time=self.clock())

    def _run_started(self) -> events.RunStarted:
        done, begun_from = self.progress.step, self.progress.begun_from
        return describe(self.spec, self.stepper, step=done, begun_from=begun_from)

    def _ended(self) -> str:
        """Why the loop is over; empty while it is not."""
        patience = self.recipe.train.patience
        if self.state.ending:
            pass
        elif self.progress.step >= self.recipe.train.max_steps:
            self.state.ending = "finished"
        elif patience and self.progress.evals_without_best >= patience:
            self.state.ending = "early_stop"
        return self.state.ending

    def _wants_control(self) -> bool:
        """Whether this process is asked to stop or to carry out commands."""
        return self.should_stop() or self.commands.waiting()

    def _advance(self) -> Generator[events.Event, None, bool]:
        """One optimizer step and all that is due after it; whether some rank wants control."""
        alone = not self.group.joined
        index, started = self.progress.step, time.perf_counter()
        measured = self.stepper.measure(
            index, self.progress.lr_factor, control=not alone and self._wants_control()
        )
        skip = index in self.progress.skip
        if not skip and not measured.finite:
            skip = yield from self._incident(measured)
            if not skip:
                return measured.control
        elif kind := self.alarms.incident(measured.loss):
            yield from self._emit([self.recorder.record(measured, kind, "recorded")])
        watching = time.perf_counter()
        if not skip:
            with self.stepper.times.spending(step_times.STATISTICS):
                for hook in self.hooks:
                    hook.before_update(measured)
        watching = time.perf_counter() - watching
        if skip:
            self.stepper.discard()
        else:
            self.stepper.apply(measured)
            self.state.skipped = 0
        seconds = time.perf_counter() - started
        self.state.count_step(self.recipe.tokens_per_step, seconds - watching)
        yield from self._emit([self._step_event(measured, seconds, skip)])
        for hook in self.hooks:
            yield from self._emit(hook.after_step(measured))
        # Asked last: whoever gave up the evaluation of this step must stop before the next one.
        return self._wants_control() if alone else measured.control

    def _step_event(self, measured: Measured, seconds: float, skipped: bool) -> events.Step:
        return events.Step(
            step=self.progress.step,
            loss=measured.loss,
            lr=measured.lr,
            grad_norm=measured.grad_norm,
            tokens=self.progress.tokens,
            tokens_per_s=self.recipe.tokens_per_step / seconds,
            step_s=seconds,
            clipped=measured.clipped,
            skipped=skipped,
        )

    def _incident(self, measured: Measured) -> Generator[events.Event, None, bool]:
        """A loss or gradient that is not finite: record it, and do what the recipe says.

        Returns whether the step is to be counted without an update.
        """
        index, state = measured.index, self.state
        if self.stepper.scaler.is_enabled() and math.isfinite(measured.loss):
            state.skipped += 1
            if state.skipped < _OVERFLOWS:
                return True  # fp16 overflow: the scaler lowers its factor, and that is all
        action = self.recipe.train.on_nonfinite
        yield from self._emit([self.recorder.record(measured, "non_finite", action)])
        if action == "skip" and state.skipped < _SKIPS:
            state.skipped += 1
            return True
        self.stepper.discard()
        problem = f"{_SKIPS} steps in a row had no update"
        if action == "rollback" and not (problem := self._roll_back(index)):
            yield from self._emit([self._run_started()])
            return False
        if action != "stop":
            note = events.Note(step=index, message=f"given up: {problem}", level="warning")
            yield from self._emit([note])
        state.ending = "non_finite"
        state.message = f"step {index + 1} has no finite loss or gradient"
        return False

    def _roll_back(self, index: int) -> str:
        """Return to the last checkpoint and leave step ``index`` out; "", or why it cannot be."""
        run, done = self.spec.folder, self.state.rollbacks
        found = retention.newest_intact(run)[0] if run else None
        folder = self.group.share(str(found) if found else "")
        if not folder:
            return "there is no checkpoint to return to"
        if index in done or len(done) >= _ROLLBACKS:
            return "resuming from the last checkpoint did not help"
        skip = self.progress.skip | {index}
        self._restore(Path(folder))
        self.progress.skip |= skip
        done.append(index)
        return ""

    def _take_control(self) -> Iterator[events.Event]:
        """Stop or carry out commands, on every rank at once; stays here while paused."""
        state = self.state
        quiet_since = time.monotonic()
        while True:
            if self.group.any(self.should_stop()):
                state.ending = state.ending or "stopped"
            yield from self._emit(self.commands.carry_out())
            if not state.paused or self._ended():
                return
            if time.monotonic() - quiet_since > _HEARTBEAT_S:
                quiet_since = time.monotonic()
                yield from self._emit([events.Heartbeat(step=self.progress.step, doing="paused")])
            with self.stepper.times.spending(step_times.PAUSED):
                time.sleep(_PAUSE_S)

    def _finish(self, started: float) -> Iterator[events.Event]:
        """Save, evaluate if the run is complete, and say how it ended."""
        state, folder = self.state, self.spec.folder
        if state.ending != "non_finite":
            yield from self._emit(self.checkpoints.save())
        if state.ending in ("finished", "early_stop"):
            yield from self._emit(self._complete())
        best = self.progress.best_loss
        last = retention.list_steps(folder)[-1:] if folder else []
        ended = events.RunEnded(
            step=self.progress.step,
            reason=state.ending,
            message=state.message,
            best_val_loss=best if math.isfinite(best) else None,
            checkpoint=f"checkpoints/step-{last[0]:06d}" if last else "",
            seconds=time.monotonic() - started,
        )
        yield from self._emit([ended])

    def _complete(self) -> Iterator[events.Event]:
        """What a run that came to its end still lacks: its last evaluation and sample."""
        state = self.state
        fresh = self.progress.evaluated_step != self.progress.step
        if not (yield from self.evaluations.evaluate()):
            state.ending = "stopped"  # during the evaluation, which a resumed run makes up for
            return
        if fresh and not self.recipe.sample.every:
            yield from self.samples.sample()
        if self.alarms.diverged:
            state.ending = "diverged"
            state.message = "the loss has left the level it had reached and not come back"


def _asked_to_skip(event: events.Event) -> set[int]:
    """The step (from 0) that an event of the log says is to be left out, in a set.

    A checkpoint remembers it as well, but a run may end before it has saved one.
    """
    if isinstance(event, events.Command) and event.name == _SKIP:
        step = whole(event.argument)
        return {step - 1} if step else set()
    return set()
