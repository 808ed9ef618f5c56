"""The training loop: a generator of events that any program can drive.

::

    for event in Trainer(recipe, data, run).run():
        ...

A step depends on (recipe, data, step) and the saved tensors alone, so a run that was stopped and
resumed makes the same bits as one that was not.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from nanogpt_cli import events, runlog
from nanogpt_cli.core import checkpoint, device, evaluate, progress
from nanogpt_cli.core.alarms import Alarms
from nanogpt_cli.core.model import GPT
from nanogpt_cli.core.progress import Progress
from nanogpt_cli.core.recorder import Recorder
from nanogpt_cli.core.setup import assemble, check_data, describe, probe_ids
from nanogpt_cli.core.stats import Collector
from nanogpt_cli.core.stepper import Measured
from nanogpt_cli.errors import UserError
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.runlog import RunFolder
from nanogpt_cli.text.tokens import TokenData

_COMMAND_POLL_S = 0.5
_HEARTBEAT_S = 5.0
_PAUSE_S = 0.1


class Trainer:
    """Trains one model.

    Args:
        recipe: what to do.
        data: prepared tokens.
        run: where checkpoints and incidents go and commands come from; ``None`` keeps everything
            in memory.
        start_from: weights to begin with instead of the recipe's initialisation.
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
        should_stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_data(recipe, data)
        self.recipe, self.data, self.folder = recipe, data, run
        self.should_stop, self.clock = should_stop, clock
        self.device = device.choose(recipe.train)
        self.stepper = assemble(recipe, data, self.device, start_from)
        self.model = self.stepper.model
        self.collector = Collector(
            self.model,
            probe_ids(recipe, data).to(self.device.device),
            every=recipe.stats.every,
            budget=recipe.stats.budget,
        )
        self.alarms = Alarms(vocab_size=data.vocab_size)
        self.recorder = Recorder(run) if run else None
        self.progress = Progress()
        self._ending = ""
        self._paused = False
        self._saved_step = self._evaluated_step = -1
        self._step_seconds = 0.0
        self._next_poll = 0.0

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint folder of the same model and data."""
        self.progress = progress.restore(folder, self.stepper, self.data)
        self._saved_step = self.progress.step

    def run(self) -> Iterator[events.Event]:
        """Train to the end, or until asked to stop; the last event is ``RunEnded``."""
        started = time.monotonic()
        yield from self._emit(self._run_started())
        self._rehearse()
        while not self._ended():
            yield from self._obey()
            if not self._paused:
                yield from self._advance()
                yield from self._milestones()
        yield from self._finish(started)

    def _emit(self, event: events.Event) -> Iterator[events.Event]:
        """Stamp an event, and let the alarms see it."""
        stamped = replace(event, time=self.clock())
        if isinstance(stamped, events.Step | events.Layers) and self.recorder:
            self.recorder.note(stamped)
        yield stamped
        for alarm in self.alarms.update(stamped):
            yield replace(alarm, time=self.clock())

    def _run_started(self) -> events.RunStarted:
        name = self.folder.name if self.folder else self.recipe.run.name
        return describe(self.recipe, self.data, self.stepper, name=name, step=self.progress.step)

    def _rehearse(self) -> None:
        """Do once, small, what comes later, so that what cannot work fails in the first minute."""
        evaluate.evaluate(self.model, self.data.val, self.device, max_batches=1)
        if self.recipe.stats.budget or self.recipe.stats.every:
            self.collector.activations()
        if self.recipe.sample.max_new_tokens:
            self._generate(self.recipe.sample.prompt, 1)
        if self.folder and self._saved_step < 0:
            trial = RunFolder(self.folder.path / ".tmp-rehearsal")
            try:
                trial.path.mkdir(exist_ok=True)
                progress.save(trial, self.stepper, self.progress, self.recipe, self.data)
            finally:
                shutil.rmtree(trial.path, ignore_errors=True)

    def _ended(self) -> str:
        """Why the loop is over; empty while it is not."""
        if not self._ending and self.should_stop():
            self._ending = "stopped"
        if not self._ending and self.progress.step >= self.recipe.train.max_steps:
            self._ending = "finished"
        patience = self.recipe.train.patience
        if not self._ending and patience and self.progress.evals_without_best >= patience:
            self._ending = "early_stop"
        return self._ending

    def _advance(self) -> Iterator[events.Event]:
        """One optimizer step and its events."""
        index = self.progress.step
        started = time.perf_counter()
        lr = self.stepper.optimizers.set_lr(index, self.progress.lr_factor)
        measured = self.stepper.measure(index)
        skip = index in self.progress.skip
        if not measured.finite and not skip:
            yield from self._incident(index, measured)
            if self._ending or self.progress.step != index:
                return
            skip = True
        watched = self.collector.due(index) and not skip
        if watched:
            self.collector.before_update()
        if skip:
            self.stepper.discard()
        else:
            norms = self.stepper.grad_norms() if watched else {}
            self.stepper.apply(measured)
        seconds = time.perf_counter() - started
        self._count(seconds if not watched else seconds - self.collector.seconds)
        yield from self._emit(
            events.Step(
                step=self.progress.step,
                loss=measured.loss,
                lr=lr,
                grad_norm=measured.grad_norm,
                tokens=self.progress.tokens,
                tokens_per_s=self.recipe.tokens_per_step / seconds,
                step_s=seconds,
                clipped=measured.clipped,
                skipped=skip,
            )
        )
        if watched:
            found = self.collector.after_update(index, norms, self._step_seconds)
            yield from self._emit(
                events.Layers(
                    step=self.progress.step,
                    stats=found,
                    every=self.collector.every,
                    cost=self.collector.cost,
                )
            )

    def _count(self, seconds: float) -> None:
        self.progress.step += 1
        self.progress.tokens += self.recipe.tokens_per_step
        smooth = 0.9 if self._step_seconds else 0.0
        self._step_seconds = smooth * self._step_seconds + (1 - smooth) * seconds

    def _incident(self, index: int, measured: Measured) -> Iterator[events.Event]:
        """A loss or gradient that is not finite: record it, and do what the recipe says."""
        if self.stepper.scaler.is_enabled() and math.isfinite(measured.loss):
            return  # fp16 overflow: the scaler skips the step and lowers its factor
        action = self.recipe.train.on_nonfinite
        broken = self.stepper.broken_gradients()
        path = None
        if self.recorder:
            path = self.recorder.write(self.stepper, index, measured, self.recipe)
        yield from self._emit(
            events.Incident(
                step=index + 1,
                kind="non_finite",
                message=f"loss {measured.loss}, gradient norm {measured.grad_norm}; "
                f"not finite: {', '.join(broken[:3]) or 'the loss alone'}",
                path=str(path.relative_to(self.folder.path)) if path and self.folder else "",
                action=action,
            )
        )
        if action == "rollback" and self._roll_back(index):
            return
        if action != "skip":
            self.stepper.discard()
            self._ending = "non_finite"

    def _roll_back(self, index: int) -> bool:
        """Return to the last checkpoint and leave step ``index`` out this time."""
        folder = checkpoint.newest_intact(self.folder)[0] if self.folder else None
        if folder is None:
            return False
        self.stepper.discard()
        skip = self.progress.skip | {index}
        self.restore(folder)
        self.progress.skip = skip
        return self.progress.step != index

    def _milestones(self) -> Iterator[events.Event]:
        """Save, then evaluate, then sample, where the recipe says so."""
        train, step = self.recipe.train, self.progress.step
        if train.checkpoint_every and step % train.checkpoint_every == 0:
            yield from self.save()
        evaluated = train.eval_every and step % train.eval_every == 0
        if evaluated:
            yield from self.evaluate()
        every = self.recipe.sample.every
        if (step % every == 0) if every else evaluated:
            yield from self.sample()

    def save(self) -> Iterator[events.Event]:
        """Write a checkpoint of the present step, unless there is one."""
        if self.folder is None or self._saved_step == self.progress.step:
            return
        started = time.perf_counter()
        path = progress.save(self.folder, self.stepper, self.progress, self.recipe, self.data)
        self._saved_step = self.progress.step
        keep = self.recipe.train
        checkpoint.prune(self.folder, keep=keep.keep, keep_every=keep.keep_every)
        yield from self._emit(
            events.Checkpoint(
                step=self.progress.step,
                path=str(path.relative_to(self.folder.path)),
                seconds=time.perf_counter() - started,
                bytes=sum(file.stat().st_size for file in path.iterdir()),
            )
        )

    def evaluate(self) -> Iterator[events.Event]:
        """Loss over the whole validation split; the best one so far is kept as a checkpoint."""
        if self._evaluated_step == self.progress.step:
            return
        self._evaluated_step = self.progress.step
        started = time.perf_counter()
        result = evaluate.evaluate(self.model, self.data.val, self.device)
        best = result.loss < self.progress.best_loss
        if best:
            self.progress.best_loss, self.progress.best_step = result.loss, self.progress.step
        self.progress.evals_without_best = 0 if best else self.progress.evals_without_best + 1
        yield from self._emit(
            events.Eval(
                step=self.progress.step,
                val_loss=result.loss,
                bits_per_byte=result.bits_per_byte(self.data.manifest.val.bytes_per_token),
                seconds=time.perf_counter() - started,
                best=best,
            )
        )
        if best and self.folder:
            yield from self.save()
            checkpoint.mark_best(self.folder, self.progress.step, result.loss)
        if self.recipe.stats.budget or self.recipe.stats.every:
            yield from self._emit(
                events.Layers(
                    step=self.progress.step, stats={}, histograms=self.collector.histograms()
                )
            )

    def sample(self, prompt: str | None = None) -> Iterator[events.Event]:
        """Let the model write."""
        section = self.recipe.sample
        if not section.max_new_tokens:
            return
        prompt = section.prompt if prompt is None else prompt
        try:
            text = self._generate(prompt, section.max_new_tokens)
        except UserError as error:
            note = events.Note(step=self.progress.step, message=str(error), level="warning")
            yield from self._emit(note)
            return
        yield from self._emit(
            events.Sample(
                step=self.progress.step,
                prompt=prompt,
                text=text,
                temperature=section.temperature,
            )
        )

    def _generate(self, prompt: str, max_new_tokens: int) -> str:
        from nanogpt_cli.core.sampler import generate_text

        text = generate_text(
            self.model,
            self.data.tokenizer,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=self.recipe.sample.temperature,
            seed=self.recipe.run.seed,
        )
        return text.removeprefix(prompt)

    def _obey(self) -> Iterator[events.Event]:
        """Carry out the command files that lie in the run folder."""
        now = time.monotonic()
        if self.folder is None or (now < self._next_poll and not self._paused):
            return
        self._next_poll = now + _COMMAND_POLL_S
        for name, argument in runlog.take_commands(self.folder):
            result, produced = self._command(name, argument)
            yield from produced
            command = events.Command(
                step=self.progress.step, name=name, argument=argument, result=result
            )
            yield from self._emit(command)
        if self._paused and not self._ended():
            time.sleep(_PAUSE_S)

    def _command(self, name: str, argument: str) -> tuple[str, Iterator[events.Event]]:
        """The answer to one command and the events it makes."""
        if name in ("pause", "resume"):
            self._paused = name == "pause"
        elif name == "checkpoint":
            return "done", self.save()
        elif name == "eval":
            return "done", self.evaluate()
        elif name == "sample":
            return "done", self.sample(argument or None)
        elif name == "stop":
            self._ending = "stopped"
        elif name == "lr":
            return self._scale_lr(argument), iter(())
        else:
            return "unknown command", iter(())
        return "done", iter(())

    def _scale_lr(self, argument: str) -> str:
        try:
            factor = float(argument)
        except ValueError:
            return f"not a number: {argument}"
        if not 0 < factor < math.inf:
            return f"not a usable factor: {argument}"
        self.progress.lr_factor *= factor
        return f"learning rate is now {self.progress.lr_factor:g} times the recipe's"

    def _finish(self, started: float) -> Iterator[events.Event]:
        """Save, evaluate if the run is complete, and say how it ended."""
        if self._ending != "non_finite":
            yield from self.save()
        if self._ending in ("finished", "early_stop"):
            yield from self.evaluate()
            if self.recipe.sample.every == 0 and self.progress.step % max(
                1, self.recipe.train.eval_every
            ):
                yield from self.sample()
        best = self.progress.best_loss
        last = checkpoint.list_steps(self.folder)[-1:] if self.folder else []
        yield from self._emit(
            events.RunEnded(
                step=self.progress.step,
                reason=self._ending,
                best_val_loss=best if math.isfinite(best) else None,
                checkpoint=f"checkpoints/step-{last[0]:06d}" if last else "",
                seconds=time.monotonic() - started,
            )
        )
