"""Learning-rate range test (Smith 2017, section 3.3): a short run at a rising rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nanogpt_cli.errors import UserError
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training.forecasts.room import readable_memory
from nanogpt_cli.training.setup import assemble
from nanogpt_cli.training.spec import resolve
from nanogpt_cli.training.starting import Start
from nanogpt_cli.training.stepper import Stepper

_STEPS = 100
_LOWEST, _HIGHEST = 1e-6, 10.0
# The rate is called too high once the smoothed loss is this much above its lowest value.
_DIVERGED_NATS = 1.0
_SMOOTH = 0.8


@dataclass(frozen=True)
class Point:
    """One step: the rate, its loss, and the loss smoothed over steps (bias-corrected)."""

    lr: float
    loss: float
    smooth: float


@dataclass(frozen=True)
class Suggestion:
    """What a sweep says.

    Attributes:
        lr: where the smoothed loss falls most steeply.
        diverged: the rate at which it blew up; ``None`` if it did not.
    """

    lr: float
    diverged: float | None


def sweep(
    recipe: Recipe, data: TokenData, start: Start | None = None, *, steps: int = _STEPS
) -> Iterator[Point]:
    """Train from the initial values or from ``start``, the peak rate rising from 1e-6 to 10.

    Weight decay, clipping and the ratio of Muon's rate to AdamW's are the recipe's; nothing is
    saved. Ends early when the loss diverges.
    """
    constant = {"schedule": "constant", "warmup_steps": 0}
    recipe = recipe.model_copy(update={"optim": recipe.optim.model_copy(update=constant)})
    spec = resolve(recipe, data)
    stepper = assemble(spec, start)
    with readable_memory(spec):
        yield from _rise(stepper, recipe.optim.lr, steps)


def _rise(stepper: Stepper, peak: float, steps: int) -> Iterator[Point]:
    """Steps at rising rates; ``peak`` is the one that the stepper's optimizers are made for."""
    average = 0.0
    lowest = math.inf
    for step in range(steps):
        lr = _LOWEST * (_HIGHEST / _LOWEST) ** (step / max(1, steps - 1))
        measured = stepper.step(step, lr / peak)
        if not measured.finite:
            yield Point(lr, measured.loss, math.inf)
            return
        average = _SMOOTH * average + (1 - _SMOOTH) * measured.loss
        smooth = average / (1 - _SMOOTH ** (step + 1))
        lowest = min(lowest, smooth)
        yield Point(lr, measured.loss, smooth)
        if smooth > lowest + _DIVERGED_NATS:
            return


def suggest(points: Sequence[Point], *, hint: str = "") -> Suggestion:
    """The rate at the steepest descent of the smoothed loss over log(lr).

    Args:
        points: of the sweep, at least one.
        hint: what to do if nothing can be suggested.

    Raises:
        UserError: the sweep ended before there was a second loss to compare.
    """
    if len(points) < 2 or not math.isfinite(points[1].smooth):
        raise UserError(
            f"no learning rate can be suggested: the loss is not finite at {points[-1].lr:.1e}",
            hint,
        )
    best = min(range(len(points)), key=lambda i: points[i].smooth)
    slopes = [points[i + 1].smooth - points[i].smooth for i in range(max(1, best))]
    steepest = min(range(len(slopes)), key=lambda i: slopes[i])
    last = points[-1]
    diverged = last.lr if last.smooth > points[best].smooth + _DIVERGED_NATS else None
    return Suggestion(points[steepest].lr, diverged)
