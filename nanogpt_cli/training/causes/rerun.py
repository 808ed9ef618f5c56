"""A run's steps made again from a checkpoint or its initial values, as its sessions made them.

Recipe, number of parts, processes and the user's learning-rate factor come from the log, so that a
step made again has the bits of the logged one wherever the machine computes alike.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_cli.errors import UserError
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training import checkpoint, progress, retention
from nanogpt_cli.training.causes.record import Record, Session
from nanogpt_cli.training.room import check_memory
from nanogpt_cli.training.setup import assemble
from nanogpt_cli.training.spec import RunSpec, resolve
from nanogpt_cli.training.stepper import Measured, Stepper


@dataclass(frozen=True)
class Change:
    """What a replay does differently from the run.

    Attributes:
        sets: overrides ``KEY=VALUE`` of every session's recipe.
        skip: steps (from 1) whose update is left out.
        factor: of the learning rate, in place of what the user asked for; ``None`` keeps that.
        recipe: a whole table of values in place of ``sets``, e.g. an earlier session's.
    """

    sets: tuple[str, ...] = ()
    skip: frozenset[int] = frozenset()
    factor: float | None = None
    recipe: Mapping[str, Any] | None = None


NOTHING = Change()


@dataclass
class Saved:
    """All tensors of a stepper after ``step``, copied."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor]
    scaler: dict[str, Any]


class Ranks(Stepper):
    """Steps as several DDP processes make them, in one: each rank's gradient, then their mean.

    A sum of two is the same in any order, so two processes are repeated bit for bit; with more the
    last bits depend on the order in which the ranks' gradients met.
    """

    world = 1

    def _accumulate(self, step: int) -> Tensor:
        total = torch.zeros((), device=self.device.device)
        parameters = list(self.model.parameters())
        summed: list[Tensor] = []
        for rank in range(self.world):
            self.slots = Group(rank, self.world).own_slots(self.windows.batch)
            self.optimizers.zero_grad()
            total += super()._accumulate(step)
            grads = [p.grad for p in parameters if p.grad is not None]
            summed = torch._foreach_add(summed, grads) if summed else grads  # type: ignore[assignment]
        for parameter, grad in zip(parameters, summed, strict=True):
            parameter.grad = grad
        self.slots = range(self.windows.batch)
        return total


def save(stepper: Stepper, step: int) -> Saved:
    """Copy a stepper's tensors."""

    def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    return Saved(
        step,
        copied(checkpoint.model_tensors(stepper.model)),
        copied(stepper.optimizers.tensors()),
        copied(stepper.average.values),
        dict(stepper.scaler.state_dict()),
    )


@torch.no_grad()
def load(stepper: Stepper, saved: Saved) -> None:
    """Give a stepper the tensors of another one."""
    for name, parameter in checkpoint.model_tensors(stepper.model).items():
        parameter.copy_(saved.model[name])
    if saved.optimizer:
        stepper.optimizers.load_tensors(saved.optimizer)
    if saved.average:
        stepper.average.load(saved.average)
    stepper.scaler.load_state_dict(stepper.scaler.state_dict() | saved.scaler)


@dataclass
class Rerun:
    """Makes the steps of a run again.

    Args:
        run: the run.
        record: its log.
        data: the tokens it was trained on.
    """

    run: RunFolder
    record: Record
    data: TokenData
    broken: list[str] = field(default_factory=list)

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

    def start(self, step: int, change: Change = NOTHING) -> tuple[Stepper, Saved | None]:
        """A stepper as the run had it after ``step``.

        Raises:
            UserError: the checkpoint is damaged or does not fit.
        """
        stepper = self.stepper(step + 1, change)
        if step:
            folder = checkpoint.folder_of(self.run, step)
            checkpoint.verify(folder)
            progress.restore(folder, stepper, self.data)
        return stepper, None

    def recipe(self, step: int, change: Change = NOTHING) -> Recipe:
        """The recipe that ``step`` is made with.

        Raises:
            UserError: it is another version's, or the change does not fit it.
        """
        session = self.record.session(step) or self.record.sessions[0]
        values = dict(change.recipe or session.recipe)
        if session.precision and values.get("train", {}).get("precision") in ("auto", None):
            values["train"] = values.get("train", {}) | {"precision": session.precision}
        values = recipe_files.overridden(values, change.sets)
        recipe = recipe_files.from_values(values, f"the log of {self.run.path}")
        train = recipe.train.model_copy(update={"compile": False, "device": self._device(recipe)})
        return recipe.model_copy(update={"train": train})

    def _device(self, recipe: Recipe) -> str:
        return recipe.train.device

    def stepper(self, step: int, change: Change = NOTHING) -> Stepper:
        """A fresh stepper with the recipe of ``step`` and the scheme's initial values."""
        session = self.record.session(step) or self.record.sessions[0]
        recipe = self.recipe(step, change)
        spec = resolve(recipe, self.data, state={"recipe": {"train": {"parts": 1}}}
                       if session.processes > 1 else None)  # fmt: skip
        check_memory(spec)
        stepper = assemble(spec)
        if session.processes > 1:
            stepper.__class__ = Ranks
            assert isinstance(stepper, Ranks)
            stepper.world = session.processes
        return stepper

    def steps(
        self,
        stepper: Stepper,
        first: int,
        last: int,
        change: Change = NOTHING,
        *,
        before: Callable[[Stepper, int], None] = lambda *_: None,
        after: Callable[[Stepper, Measured], None] = lambda *_: None,
    ) -> Iterator[Measured]:
        """Make the steps from ``first`` to ``last`` (both from 1) with ``stepper``.

        Args:
            stepper: as after ``first - 1``.
            change: what to do differently.
            before: called before each step.
            after: called between the measurement of a step and its update.
        """
        current = self.record.session(first)
        for step in range(first, last + 1):
            session = self.record.session(step)
            if session is not current:
                current, fresh = session, self.stepper(step, change)
                load(fresh, save(stepper, step - 1))
                stepper.__class__, stepper.__dict__ = fresh.__class__, fresh.__dict__
            before(stepper, step)
            factor = self.record.factor(step) if change.factor is None else change.factor
            measured = stepper.measure(step - 1, factor)
            after(stepper, measured)
            skip = step in self.record.skipped or step in change.skip
            if measured.finite and not skip:
                stepper.apply(measured)
            else:
                stepper.discard()
            yield measured


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


def compare(
    rerun: Rerun, made: Mapping[int, float], until: int
) -> Agreement:
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
    import platform

    from nanogpt_cli.machine import device
    from nanogpt_cli.machine.environment import versions

    session = rerun.record.session(step) or rerun.record.sessions[0]
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
