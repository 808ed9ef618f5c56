"""Forward and backward of a micro-batch in parts side by side, each on one CPU thread.

PyTorch spreads every single operation over its threads, which then meet at a barrier a thousand
times a step; with small matrices, or beside another program, the waiting costs more than it gives.
Parts meet once a step. Gradients are added in the order of the parts, so the bits depend on their
number (``train.parts``) and not on who was faster, nor on how many threads PyTorch has.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from nanogpt_cli.machine import threads
from nanogpt_cli.machine.device import Device
from nanogpt_cli.recipe import Recipe

# With more threads each part would have little to do and a copy of the gradients to do it in: there
# PyTorch spreads single operations instead.
_MOST = 8

Result = TypeVar("Result")
# From the slots of a part to its share of the step's loss.
Loss = Callable[[range], Tensor]


def choose(recipe: Recipe, device: Device, world: int) -> int:
    """How many parts: the recipe's number, or one per core this process may use.

    fp16 has one loss scaler, compiled models and several processes have threads of their own: they
    work in one part.
    """
    if not device.eager_cpu or world > 1 or device.precision == "fp16":
        return 1
    return min(recipe.train.parts or side_by_side(device), recipe.train.batch_size)


def side_by_side(device: Device) -> int:
    """Parts that a device computes at once: one a thread of PyTorch's, as cores allow, or one."""
    if device.device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = min(torch.get_num_threads(), cores or 1)
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
    """Slots dealt out evenly, in order; fewer parts when there are not enough."""
    parts = min(parts, len(slots))
    cuts = [slots.start + len(slots) * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(cuts)]


def gradients(
    loss: Loss, slots: range, parts: int, parameters: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Sum of the parts' losses and of their gradients.

    Args:
        loss: called once a part, in a thread of its own.
        slots: of the micro-batch.
        parts: how many.
        parameters: what to differentiate by; every one must take part.
    """

    def work(mine: range) -> tuple[Tensor, tuple[Tensor, ...]]:
        value = loss(mine)
        return value.detach(), torch.autograd.grad(value, parameters)

    found = run(work, slots, parts)

    def add(mine: range) -> list[Tensor]:
        first, *others = (grads[mine.start : mine.stop] for _, grads in found)
        summed = [grad.contiguous() for grad in first]  # as the parameters are
        for more in others:
            torch._foreach_add_(summed, list(more))
        return summed

    total = functools.reduce(torch.add, (value for value, _ in found))
    return total, [grad for some in run(add, range(len(parameters)), parts) for grad in some]


def run(work: Callable[[range], Result], slots: range, parts: int) -> list[Result]:
    """``work`` on each part, in threads of their own; results in the order of the parts."""
    if parts <= 1:
        return [work(slots)]
    return list(threads.pool(parts).map(work, split(slots, parts)))
