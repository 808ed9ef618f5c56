"""What a run does around its steps: statistics, saves, evaluations, samples, and their rehearsal.

Whatever else a run is to do at its steps is one more ``Hook`` in the list of ``Trainer``. Hooks
yield their events without a time stamp. With several processes every rank goes through all hooks
together; the first one writes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterator

from torch import Tensor

from nanogpt_cli.errors import UserError
from nanogpt_cli.machine import distributed
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.training import evaluate, progress, step_times
from nanogpt_cli.training.checkpoints import checkpoint, retention
from nanogpt_cli.training.evaluate import Result
from nanogpt_cli.training.spec import RunSpec
from nanogpt_cli.training.state import RunState
from nanogpt_cli.training.stats import Collector
from nanogpt_cli.training.stepper import Measured, Stepper

_HEARTBEAT_S = 5.0


class Hook:
    """Something a run does at its steps.

    Args:
        spec: what the run is.
        stepper: the model and its optimizers.
        state: where the run is; evaluations and saves are noted in it.
    """

    def __init__(self, spec: RunSpec, stepper: Stepper, state: RunState) -> None:
        self.spec, self.stepper, self.state = spec, stepper, state
        self.recipe, self.folder, self.group = spec.recipe, spec.folder, spec.group

    @property
    def progress(self) -> progress.Progress:
        """Where the run is."""
        return self.state.progress

    def before_update(self, measured: Measured) -> None:
        """Look at a gradient; called only for steps whose update is made."""

    def after_step(self, measured: Measured | None) -> Iterator[events.Event]:
        """Do what is due after a step.

        Args:
            measured: of the step; ``None`` when a run is resumed, to make up for what was due at
                the step of its checkpoint.
        """
        del measured
        yield from ()


class Statistics(Hook):
    """Per-layer statistics of weights, updates, gradients and activations."""

    def __init__(
        self, spec: RunSpec, stepper: Stepper, state: RunState, collector: Collector
    ) -> None:
        super().__init__(spec, stepper, state)
        self.collector = collector
        self._norms: dict[str, Tensor] | None = None

    def before_update(self, measured: Measured) -> None:
        """Keep the matrices and the gradients' norms of a step that is due."""
        if self.collector.due(measured.index):
            self.collector.before_update()
            self._norms = self.stepper.grad_norms()

    def after_step(self, measured: Measured | None) -> Iterator[events.Event]:
        """The statistics of a step that was due."""
        norms, self._norms = self._norms, None
        if measured is None or norms is None:
            return
        with self.stepper.times.spending(step_times.STATISTICS):
            found = self.collector.after_update(measured.index, norms, self.state.step_seconds)
        every, cost = self.collector.every, self.collector.cost
        yield events.Layers(step=measured.index + 1, stats=found, every=every, cost=cost)


class Checkpoints(Hook):
    """Saves, and keeps as many checkpoints as the recipe says."""

    def after_step(self, measured: Measured | None) -> Iterator[events.Event]:  # noqa: ARG002
        """Save where the recipe says so."""
        every = self.recipe.train.checkpoint_every
        if every and self.progress.step % every == 0:
            yield from self.save()

    def save(self) -> Iterator[events.Event]:
        """Write a checkpoint of the present step, unless there is one."""
        if self.folder is None or self.state.saved_step == self.progress.step:
            return
        with self.stepper.times.spending(step_times.CHECKPOINT):
            yield from self._write(self.folder)

    def _write(self, folder: RunFolder) -> Iterator[events.Event]:
        started = time.perf_counter()
        path = progress.save(folder, self.stepper, self.spec, self.progress)
        self.state.saved_step = self.progress.step
        if not self.group.leads:
            return
        keep = self.recipe.train
        retention.prune(folder, keep=keep.keep, keep_every=keep.keep_every)
        yield events.Checkpoint(
            step=self.progress.step,
            path=str(path.relative_to(folder.path)),
            seconds=time.perf_counter() - started,
            bytes=sum(file.stat().st_size for file in path.iterdir()),
        )


class Evaluations(Hook):
    """Loss over the whole validation split; the best one so far is kept as a checkpoint.

    Args:
        spec, stepper, state: of the run.
        checkpoints: saves the best one.
        collector: of histograms.
        interrupted: asked during an evaluation, which is given up when true. It is made again when
            the run is resumed, so nothing is lost.
    """

    def __init__(
        self,
        spec: RunSpec,
        stepper: Stepper,
        state: RunState,
        checkpoints: Checkpoints,
        collector: Collector,
        interrupted: Callable[[], bool],
    ) -> None:
        super().__init__(spec, stepper, state)
        self.checkpoints, self.collector = checkpoints, collector
        self.interrupted = interrupted

    def after_step(self, measured: Measured | None) -> Iterator[events.Event]:  # noqa: ARG002
        """Evaluate where the recipe says so."""
        every = self.recipe.train.eval_every
        if every and self.progress.step % every == 0:
            yield from self.evaluate()

    def evaluate(self) -> Generator[events.Event, None, bool]:
        """Evaluate the present step, unless that is done.

        Returns whether it is evaluated now: true unless the evaluation was interrupted.
        """
        if self.progress.evaluated_step == self.progress.step:
            return True
        with self.stepper.times.spending(step_times.EVALUATION):
            return (yield from self._evaluate())

    def _evaluate(self) -> Generator[events.Event, None, bool]:
        step, val = self.progress.step, self.spec.data.val
        started = time.perf_counter()
        with self.stepper.average.in_place():
            passes = evaluate.passes(
                self.stepper.model, val, self.stepper.device, group=self.group,
                losses=self.stepper.token_losses,
            )  # fmt: skip
            result = yield from self._with_heartbeats(passes)
        if result is None:
            return False
        best = self._note_result(step, result.loss)
        yield events.Eval(
            step=step,
            val_loss=result.loss,
            bits_per_byte=result.bits_per_byte(self.spec.data.manifest.val.bytes_per_token),
            std_error=result.std_error,
            seconds=time.perf_counter() - started,
            best=best,
        )
        if best and self.folder:
            yield from self.checkpoints.save()
            if self.group.leads:
                retention.mark_best(self.folder, step, result.loss)
        if self.recipe.stats.budget or self.recipe.stats.every:
            yield events.Histograms(step=step, histograms=self.collector.histograms())
        return True

    def _with_heartbeats(
        self, passes: Generator[float, None, Result]
    ) -> Generator[events.Event, None, Result | None]:
        """The result of an evaluation with signs of life; ``None`` when it was given up."""
        last = time.monotonic()
        while True:
            try:
                share = next(passes)
            except StopIteration as done:
                result: Result = done.value
                return result
            if not self.group.joined and self.interrupted():
                return None
            if time.monotonic() - last > _HEARTBEAT_S:
                last = time.monotonic()
                yield events.Heartbeat(step=self.progress.step, doing=f"evaluate {share:.0%}")

    def _note_result(self, step: int, loss: float) -> bool:
        """Whether this evaluation is the best one so far."""
        progress = self.progress
        progress.evaluated_step = step
        best = loss < progress.best_loss
        if best:
            progress.best_loss, progress.best_step = loss, step
        progress.evals_without_best = 0 if best else progress.evals_without_best + 1
        return best


class Samples(Hook):
    """Text that the model writes while it trains."""

    def after_step(self, measured: Measured | None) -> Iterator[events.Event]:  # noqa: ARG002
        """Sample where the recipe says so; by default after each evaluation."""
        step, every = self.progress.step, self.recipe.sample.every
        if not every:
            every = self.recipe.train.eval_every
            if self.progress.evaluated_step != step:
                return  # no evaluation was due, or it was interrupted
        if every and step % every == 0:
            yield from self.sample()

    def sample(self, prompt: str | None = None) -> Iterator[events.Event]:
        """Let the model write."""
        section = self.recipe.sample
        if not section.max_new_tokens:
            return
        prompt = section.prompt if prompt is None else prompt
        try:
            text = self._generate(prompt, section.max_new_tokens)
        except UserError as error:
            yield self._warning(str(error))
            return
        yield events.Sample(
            step=self.progress.step, prompt=prompt, text=text, temperature=section.temperature
        )

    def _generate(self, prompt: str, max_new_tokens: int) -> str:
        """The continuation of ``prompt``; made by the first rank, empty on the others."""
        with self.stepper.times.spending(step_times.SAMPLE), self.stepper.average.in_place():
            return self._continue(prompt, max_new_tokens)

    def _continue(self, prompt: str, max_new_tokens: int) -> str:
        from nanogpt_cli.sampling.continuation import generate_text

        model = self._whole_model()
        if model is None:
            return ""
        text = generate_text(
            model,
            self.spec.data.tokenizer,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=self.recipe.sample.temperature,
            seed=self.recipe.run.seed,
        )
        return text.removeprefix(prompt)

    def _whole_model(self) -> GPT | None:
        """On the first rank the model; where it is split over ranks, a whole copy on the CPU."""
        raw = self.stepper.model
        tensors = checkpoint.model_tensors(raw)
        if not any(distributed.is_split(tensor) for tensor in tensors.values()):
            return raw if self.group.leads else None
        gathered = distributed.whole(tensors, self.group)
        return checkpoint.from_tensors(raw.config, gathered) if self.group.leads else None

    def _warning(self, message: str) -> events.Note:
        return events.Note(step=self.progress.step, message=message, level="warning")

    def rehearse(self) -> Iterator[events.Event]:
        """Draw one token; a warning where samples cannot be made."""
        if not self.recipe.sample.max_new_tokens:
            return
        try:
            self._generate(self.recipe.sample.prompt, 1)
        except UserError as error:
            yield self._warning(f"there will be no samples: {error}")


def rehearse(
    spec: RunSpec, stepper: Stepper, state: RunState, collector: Collector, samples: Samples
) -> Iterator[events.Event]:
    """Do once, small, what comes later, so that what cannot work fails in the first minute."""
    with stepper.average.in_place():
        evaluate.evaluate(
            stepper.model, spec.data.val, stepper.device, max_batches=1, group=spec.group,
            losses=stepper.token_losses,
        )  # fmt: skip
    if spec.recipe.stats.budget or spec.recipe.stats.every:
        collector.rehearse()
    yield from samples.rehearse()
    if spec.folder and state.saved_step < 0:
        trial = RunFolder(spec.folder.path / ".tmp-rehearsal")
        try:
            trial.path.mkdir(exist_ok=True)
            progress.save(trial, stepper, spec, state.progress)
        finally:
            if spec.group.leads:
                shutil.rmtree(trial.path, ignore_errors=True)
