"""Forward and backward pass of a micro-batch in parallel parts, each on one CPU thread.

PyTorch spreads every single operation over its threads, which then synchronise a thousand times per
step; with small matrices, or beside another program, the waiting costs more than the threads gain.
Parts synchronise once per micro-batch. Their gradients are added in a fixed order, so the result
depends on the number of parts (``train.parts``), not on which finished first or on the number of
PyTorch's threads.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from nanogpt_cli import host
from nanogpt_cli.machine import threads
from nanogpt_cli.machine.device import Device
from nanogpt_cli.recipe import Recipe

# With more threads each part would have little work and need its own copy of the gradients; there
# PyTorch's parallel operations are used instead.
_MOST = 8

Result = TypeVar("Result")
# Maps the slots of a part to its share of the step's loss.
Loss = Callable[[range], Tensor]


def choose(recipe: Recipe, device: Device, *, alone: bool) -> int:
    """The number of parts: the recipe's, or one per core that this process may use.

    It is 1 for fp16, which has a single loss scaler, and for compiled models and joined processes,
    which use the cores themselves.
    """
    if not device.eager_cpu or not alone or device.precision == "fp16":
        return 1
    return min(recipe.train.parts or side_by_side(device), recipe.train.batch_size)


def side_by_side(device: Device) -> int:
    """How many parts a device computes in parallel: one per usable core of a CPU, else one.

    Compiled code uses the cores itself, and has one shape.
    """
    if not device.eager_cpu:
        return 1
    count = min(torch.get_num_threads(), host.usable_cores())
    return count if count <= _MOST else 1


def saved(state: Mapping[str, Any]) -> int:
    """The number of parts that the run of a checkpoint's ``state`` had; 0 if it had none."""
    found: int = state.get("recipe", {}).get("train", {}).get("parts", 0)
    return found


def with_parts(recipe: Recipe, n_parts: int) -> Recipe:
    """The recipe with the number of parts written out."""
    train = recipe.train.model_copy(update={"parts": n_parts})
    return recipe.model_copy(update={"train": train})


def split(slots: range, parts: int) -> list[range]:
    """Divide slots evenly, in order; there are fewer parts if there are too few slots."""
    parts = min(parts, len(slots))
    cuts = [slots.start + len(slots) * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(cuts)]


def gradients(
    loss: Loss, slots: range, parts: int, parameters: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Sum the losses and the gradients of all parts.

    Args:
        loss: called once per part, each time in a different thread.
        slots: of the micro-batch.
        parts: number of parts.
        parameters: tensors to differentiate with respect to; the loss must depend on each.
    """

    def work(mine: range) -> tuple[Tensor, tuple[Tensor, ...]]:
        value = loss(mine)
        return value.detach(), torch.autograd.grad(value, parameters)

    found = run(work, slots, parts)

    def add(mine: range) -> list[Tensor]:
        first, *others = (grads[mine.start : mine.stop] for _, grads in found)
        summed = list(first)
        for more in others:
            torch._foreach_add_(summed, list(more))
        return [grad.contiguous() for grad in summed]  # as the parameters are

    total = functools.reduce(torch.add, (value for value, _ in found))
    return total, [grad for some in run(add, range(len(parameters)), parts) for grad in some]


def run(work: Callable[[range], Result], slots: range, parts: int) -> list[Result]:
    """Call ``work`` on each part in its own thread; results are in the order of the parts."""
    if parts <= 1:
        return [work(slots)]
    return list(threads.pool(parts).map(work, split(slots, parts)))
