"""A run's steps made again from a checkpoint or its initial values, as its sessions made them.

Recipe, number of parts, processes and the user's learning-rate factor come from the log, so that a
step made again has the bits of the logged one wherever the machine computes alike.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nanogpt_cli.machine import device
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.machine.environment import versions
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training import progress
from nanogpt_cli.training.causes.record import Record, Session
from nanogpt_cli.training.checkpoints import checkpoint, retention
from nanogpt_cli.training.forecasts.room import check_memory
from nanogpt_cli.training.setup import assemble
from nanogpt_cli.training.spec import resolve
from nanogpt_cli.training.stepper import Measured, Stepper


@dataclass(frozen=True)
class Change:
    """What a replay does differently from the run.

    Attributes:
        sets: overrides ``KEY=VALUE`` of every session's recipe.
        skip: steps (from 1) whose update is left out.
        factor: of the learning rate, in place of what the user asked for; ``None`` keeps that.
    """

    sets: tuple[str, ...] = ()
    skip: frozenset[int] = frozenset()
    factor: float | None = None


NOTHING = Change()


class Ranks(Stepper):
    """Steps as several DDP processes make them, in one: each rank's gradient, then their sum.

    A sum of two is the same in any order, so two processes are repeated bit for bit; with more the
    last bits depend on the order in which the ranks' gradients meet.

    Args:
        world: number of processes; the others as of ``Stepper``.
    """

    def __init__(self, *arguments: Any, world: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.world = world

    def _accumulate(self, step: int) -> Tensor:
        total = torch.zeros((), device=self.device.device)
        parameters = list(self.model.parameters())
        summed: list[Tensor] = []
        for rank in range(self.world):
            self.slots = Group(rank, self.world).own_slots(self.windows.batch)
            self.optimizers.zero_grad()
            total = total + super()._accumulate(step)
            grads = [p.grad for p in parameters if p.grad is not None]
            if summed:
                torch._foreach_add_(summed, grads)
            else:
                summed = grads
        for parameter, grad in zip(parameters, summed, strict=True):
            parameter.grad = grad
        self.slots = range(self.windows.batch)
        return total


@dataclass
class Rerun:
    """Makes the steps of a run again.

    Args:
        run: the run.
        record: its log.
        data: the tokens it was trained on.

    Raises:
        UserError: these are other tokens.
    """

    run: RunFolder
    record: Record
    data: TokenData

    def __post_init__(self) -> None:
        if not self.record.sessions:
            recipe = recipe_files.load_resolved(self.run.recipe)
            self.record.sessions.append(Session(0, recipe.model_dump(mode="json")))
        state = progress.newest_state(self.run)
        if state:
            progress.check_data(self.run.path, state.get("data", {}), self.data)
        self.versions: dict[str, Any] = state.get("versions", {})

    def starts(self, before: int) -> list[int]:
        """Steps after which steps below ``before`` can begin, the nearest first; 0 is the start."""
        return [s for s in reversed(retention.list_steps(self.run)) if 0 < s < before] + [0]

    def session(self, step: int) -> Session:
        """The session that made ``step``."""
        return self.record.session(step) or self.record.sessions[0]

    def recipe(self, step: int, change: Change = NOTHING) -> Recipe:
        """The recipe that ``step`` is made with, uncompiled.

        Raises:
            UserError: it is another version's, or the change does not fit it.
        """
        session = self.session(step)
        values = dict(session.recipe)
        train = values.get("train")
        if session.precision and isinstance(train, dict) and train.get("precision") == "auto":
            values["train"] = train | {"precision": session.precision}
        values = recipe_files.overridden(values, change.sets)
        recipe = recipe_files.from_values(values, f"the recipe in {self.run.events}")
        plain = recipe.train.model_copy(update={"compile": False})
        return recipe.model_copy(update={"train": plain})

    def assembled(self, step: int, change: Change = NOTHING) -> Stepper:
        """A fresh stepper with the recipe of ``step`` and the scheme's initial values."""
        processes = self.session(step).processes
        # Joined processes do not divide a micro-batch, and neither does who repeats their steps.
        whole = {"recipe": {"train": {"parts": 1}}} if processes > 1 else None
        spec = resolve(self.recipe(step, change), self.data, state=whole)
        check_memory(spec)
        return assemble(spec, kind=partial(Ranks, world=processes) if processes > 1 else Stepper)


class Course:
    """The steps of a run in the making; another session's recipe brings another stepper.

    Args:
        rerun: of the run.
        after: the step of a checkpoint, or 0 for the initial values.
        change: what to do differently.

    Raises:
        UserError: the checkpoint is damaged or does not fit, or the change does not.
    """

    def __init__(self, rerun: Rerun, after: int, change: Change = NOTHING) -> None:
        self.rerun, self.change, self.done = rerun, change, after
        self.stepper = rerun.assembled(after + 1, change)
        if after:
            folder = checkpoint.folder_of(rerun.run, after)
            checkpoint.verify(folder)
            progress.restore(folder, self.stepper, rerun.data)

    def steps(
        self, last: int, *, measured: Callable[[Stepper], None] = lambda _: None
    ) -> Iterator[Measured]:
        """Make the steps up to ``last``, and yield each after its update.

        Args:
            last: from 1.
            measured: called between the gradient of a step and its update.
        """
        record = self.rerun.record
        while self.done < last:
            step = self.done + 1
            if self.done and record.session(step) is not record.session(self.done):
                fresh = self.rerun.assembled(step, self.change)
                _hand_over(self.stepper, fresh)
                self.stepper = fresh
            factor = self.change.factor
            found = self.stepper.measure(
                step - 1, record.factor(step) if factor is None else factor
            )
            measured(self.stepper)
            skip = step in record.skipped or step in self.change.skip
            if found.finite and not skip:
                self.stepper.apply(found)
            else:
                self.stepper.discard()
            self.done = step
            yield found


@torch.no_grad()
def _hand_over(old: Stepper, new: Stepper) -> None:
    """Give a stepper the tensors of another one, as a resume does."""
    tensors = checkpoint.model_tensors(old.model)
    for name, parameter in checkpoint.model_tensors(new.model).items():
        parameter.copy_(tensors[name])
    if moments := old.optimizers.tensors():
        new.optimizers.load_tensors(moments)
    if old.average.values:
        new.average.load(old.average.values)
    else:
        new.average.restart()
    new.scaler.load_state_dict(new.scaler.state_dict() | old.scaler.state_dict())


@dataclass(frozen=True)
class Agreement:
    """How the losses made again compare with the log.

    Attributes:
        first: first step that was compared.
        equal: steps whose losses have the same bits, from ``first`` on without a gap.
        differs: first step that differs; 0 if none does.
        largest: largest relative difference.
        why: reasons that are known, as sentences.
    """

    first: int
    equal: int
    differs: int = 0
    largest: float = 0.0
    why: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every loss has the bits of the log."""
        return not self.differs

    @property
    def close(self) -> bool:
        """Whether the differences are those of rounding, so that causes can be tried out."""
        return self.largest <= _CLOSE


_CLOSE = 0.02


def compare(rerun: Rerun, made: Mapping[int, float], until: int) -> Agreement:
    """Compare losses made again with the logged ones up to ``until``."""
    first = min(made, default=0)
    equal, differs, largest = 0, 0, 0.0
    for step, loss in sorted(made.items()):
        logged = rerun.record.losses.get(step)
        if logged is None or step > until:
            continue
        same = loss == logged or (math.isnan(loss) and math.isnan(logged))
        if same and not differs:
            equal += 1
        elif not same:
            differs = differs or step
            both = math.isfinite(loss) and math.isfinite(logged)
            gap = abs(loss - logged) / max(1.0, abs(logged)) if both else math.inf
            largest = max(largest, gap)
    why = tuple(reasons(rerun, differs)) if differs else ()
    return Agreement(first, equal, differs, largest, why)


def reasons(rerun: Rerun, step: int) -> Iterator[str]:
    """What is not as it was when ``step`` was made, as far as the run says."""
    session = rerun.session(step)
    now = versions()
    then = rerun.versions | ({"nanogpt-cli": session.version} if session.version else {})
    for key, name in (("nanogpt-cli", "nanogpt-cli"), ("torch", "PyTorch"), ("numpy", "NumPy"),
                      ("platform", "platform")):  # fmt: skip
        if then.get(key) and then[key] != now[key]:
            yield f"{name} {then[key]} then, {now[key]} now"
    if session.host and session.host != platform.node():
        yield f"made on another machine, {session.host:.80}"
    here = device.choose(rerun.recipe(step).train)
    if session.device and session.device != here.name:
        yield f"made on {session.device:.80}, repeated on {here.name}"
    if session.recipe.get("train", {}).get("compile") is True or here.device.type != "cpu":
        yield "compiled kernels and GPUs round differently"
    if session.processes > 2:
        yield f"{session.processes} processes add their gradients in an order of their own"
