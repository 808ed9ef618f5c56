"""What happens between steps: saving, evaluating, sampling, and their rehearsal.

Each method yields its events without a time stamp. With several processes every rank goes through
them together; the first one writes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterator

from nanogpt_cli.errors import UserError
from nanogpt_cli.machine import distributed
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training import checkpoint, evaluate, progress, retention
from nanogpt_cli.training.evaluate import Result
from nanogpt_cli.training.progress import Progress
from nanogpt_cli.training.stats import Collector
from nanogpt_cli.training.stepper import Stepper

_HEARTBEAT_S = 5.0


class Milestones:
    """Saves, evaluates and samples for a trainer.

    Args:
        recipe: when, and how.
        data: prepared tokens.
        folder: where checkpoints go; ``None`` saves nothing.
        stepper: the model and its optimizers.
        collector: for histograms.
        progress: of the run; evaluations are noted in it.
        interrupted: asked during an evaluation, which is given up when true. Evaluations are
            made again on resuming, so nothing is lost.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: TokenData,
        folder: RunFolder | None,
        stepper: Stepper,
        collector: Collector,
        progress: Progress,
        interrupted: Callable[[], bool],
    ) -> None:
        self.recipe, self.data, self.folder = recipe, data, folder
        self.stepper, self.collector, self.progress = stepper, collector, progress
        self.group, self.interrupted = stepper.group, interrupted
        self.saved_step = -1

    def rehearse(self) -> Iterator[events.Event]:
        """Do once, small, what comes later, so that what cannot work fails in the first minute."""
        stepper = self.stepper
        with stepper.average.in_place():
            evaluate.evaluate(
                stepper.model, self.data.val, stepper.device, max_batches=1, group=self.group
            )
        if self.recipe.stats.budget or self.recipe.stats.every:
            self.collector.activations()
        if self.recipe.sample.max_new_tokens:
            try:
                self._generate(self.recipe.sample.prompt, 1)
            except UserError as error:
                yield self._warning(f"there will be no samples: {error}")
        if self.folder and self.saved_step < 0:
            trial = RunFolder(self.folder.path / ".tmp-rehearsal")
            try:
                trial.path.mkdir(exist_ok=True)
                progress.save(trial, stepper, self.progress, self.recipe, self.data)
            finally:
                if self.group.leads:
                    shutil.rmtree(trial.path, ignore_errors=True)

    def reached(self) -> Iterator[events.Event]:
        """Save, then evaluate, then sample, where the recipe says so."""
        train, step = self.recipe.train, self.progress.step
        if train.checkpoint_every and step % train.checkpoint_every == 0:
            yield from self.save()
        evaluated = bool(train.eval_every) and step % train.eval_every == 0
        if evaluated:
            evaluated = yield from self.evaluate()
        every = self.recipe.sample.every
        if (step % every == 0) if every else evaluated:
            yield from self.sample()

    def complete(self) -> Iterator[events.Event]:
        """What a run that came to its end still lacks: its last evaluation and sample."""
        fresh = self.progress.evaluated_step != self.progress.step
        if (yield from self.evaluate()) and fresh and not self.recipe.sample.every:
            yield from self.sample()

    def save(self) -> Iterator[events.Event]:
        """Write a checkpoint of the present step, unless there is one."""
        if self.folder is None or self.saved_step == self.progress.step:
            return
        started = time.perf_counter()
        path = progress.save(self.folder, self.stepper, self.progress, self.recipe, self.data)
        self.saved_step = self.progress.step
        if not self.group.leads:
            return
        keep = self.recipe.train
        retention.prune(self.folder, keep=keep.keep, keep_every=keep.keep_every)
        yield events.Checkpoint(
            step=self.progress.step,
            path=str(path.relative_to(self.folder.path)),
            seconds=time.perf_counter() - started,
            bytes=sum(file.stat().st_size for file in path.iterdir()),
        )

    def evaluate(self) -> Generator[events.Event, None, bool]:
        """Loss over the whole validation split; the best one so far is kept as a checkpoint.

        Returns whether the present step is evaluated: true unless the evaluation was interrupted.
        """
        step = self.progress.step
        if self.progress.evaluated_step == step:
            return True
        started = time.perf_counter()
        with self.stepper.average.in_place():
            result = yield from self._loss()
        if result is None:
            return False
        best = self._note_result(step, result.loss)
        yield events.Eval(
            step=step,
            val_loss=result.loss,
            bits_per_byte=result.bits_per_byte(self.data.manifest.val.bytes_per_token),
            seconds=time.perf_counter() - started,
            best=best,
        )
        if best and self.folder:
            yield from self.save()
            if self.group.leads:
                retention.mark_best(self.folder, step, result.loss)
        if self.recipe.stats.budget or self.recipe.stats.every:
            found = self.collector.histograms()
            yield events.Layers(step=step, stats={}, histograms=found)
        return True

    def _loss(self) -> Generator[events.Event, None, Result | None]:
        """The evaluation with signs of life; ``None`` when it was given up."""
        passes = evaluate.passes(
            self.stepper.model, self.data.val, self.stepper.device, group=self.group
        )
        last = time.monotonic()
        while True:
            try:
                share = next(passes)
            except StopIteration as done:
                result: Result = done.value
                return result
            if self.group.world == 1 and self.interrupted():
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
        with self.stepper.average.in_place():
            return self._continue(prompt, max_new_tokens)

    def _continue(self, prompt: str, max_new_tokens: int) -> str:
        from nanogpt_cli.sampling.sampler import generate_text

        model = self._whole_model()
        if model is None:
            return ""
        text = generate_text(
            model,
            self.data.tokenizer,
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
