"""Does stopping and going on give the bits of a run that was never stopped? A check of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_cli.recipe import Recipe
from nanogpt_cli.run import events, history
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training.checkpoints import checkpoint, retention
from nanogpt_cli.training.trainer import Trainer


@dataclass(frozen=True)
class Verdict:
    """What the comparison found.

    Attributes:
        steps: steps of both runs.
        stopped: the step after which one of them was stopped.
        tensors: compared weights, optimizer tensors and averages.
        losses: compared logged losses.
        evaluations: compared evaluations, with whether each was the best so far.
        differing: name of the first tensor (or step) that differs, with by how much; "" if none.
    """

    steps: int
    stopped: int
    tensors: int
    losses: int
    evaluations: int
    differing: str


@dataclass
class _Run:
    log: list[events.Event] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def losses(self) -> dict[int, float]:
        """Loss by step."""
        return {e.step: e.loss for e in history.effective(self.log) if isinstance(e, events.Step)}

    def evaluations(self) -> dict[int, tuple[float, bool]]:
        """Loss of each evaluation, and whether it was the best so far."""
        told = (e for e in history.effective(self.log) if isinstance(e, events.Eval))
        return {e.step: (e.val_loss, e.best) for e in told}


def check(
    recipe: Recipe,
    data: TokenData,
    folder: Path,
    *,
    steps: int,
    stop: int,
    report: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Train ``steps`` steps at a stretch, and again with a stop after ``stop``; compare all bits.

    Both runs have the recipe's own schedule, and evaluate where the second one stops and at the
    end. The second goes through a checkpoint on the disk and a trainer made anew.

    Args:
        folder: an empty folder for checkpoints.
        report: receives a line per run.
    """
    train = {"max_steps": steps, "eval_every": stop, "checkpoint_every": 0}
    optim = {"warmup_steps": min(recipe.optim.warmup_steps, steps)}
    recipe = recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update=train),
            "optim": recipe.optim.model_copy(update=optim),
            "sample": recipe.sample.model_copy(update={"max_new_tokens": 0}),
        }
    )
    report(f"{steps} steps at a stretch")
    straight = _Run()
    _drive(Trainer(recipe, data), straight, steps)
    report(f"{stop} steps, a checkpoint, and {steps - stop} more")
    resumed = _Run()
    run = RunFolder(folder)
    _drive(Trainer(recipe, data, run), resumed, stop)
    second = Trainer(recipe, data, run, checkpoint=retention.find(run, "last"))
    _drive(second, resumed, steps)
    return Verdict(
        steps=steps,
        stopped=stop,
        tensors=len(straight.tensors),
        losses=len(straight.losses()),
        evaluations=len(straight.evaluations()),
        differing=_first_difference(straight, resumed),
    )


def _drive(trainer: Trainer, into: _Run, until: int) -> None:
    """Run to a step, keep the log, and at the end the tensors."""
    for event in trainer.run():
        into.log.append(event)
        last = trainer.recipe.train.max_steps
        if isinstance(event, events.Step) and event.step == until < last:
            # Seen during the evaluation that is due now: the resumed run must make up for it.
            trainer.should_stop = trainer.evaluations.interrupted = lambda: True
    weights = checkpoint.model_tensors(trainer.model)
    moments = trainer.stepper.optimizers.tensors()
    averages = {f"{k}.ema": value for k, value in trainer.stepper.average.values.items()}
    into.tensors = {k: t.detach().clone() for k, t in (weights | moments | averages).items()}


def _first_difference(one: _Run, two: _Run) -> str:
    losses = two.losses()
    for step, loss in one.losses().items():
        other = losses.get(step, math.nan)
        if loss != other and not (math.isnan(loss) and math.isnan(other)):
            return f"the loss of step {step}: {loss!r} against {other!r}"
    if one.evaluations() != two.evaluations():
        return f"the evaluations: {one.evaluations()} against {two.evaluations()}"
    for name, tensor in one.tensors.items():
        found = two.tensors.get(name)
        if found is None:
            return f"{name} is missing"
        if not torch.equal(tensor, found):
            gap = float((tensor.double() - found.double()).abs().max())
            return f"{name}: largest difference {gap:.3g}"
    return ""
