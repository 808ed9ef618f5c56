"""Forward and backward pass of a micro-batch in parallel parts, each on one CPU thread.

PyTorch spreads every single operation over its threads, which then synchronise a thousand times per
step; with small matrices, or beside another program, the waiting costs more than the threads gain.
Parts synchronise once per micro-batch. A large one is divided into more pieces than there are
parts, and a thread that has finished its piece takes the next. Gradients are added in a fixed
order, so the result depends on the number of parts (``train.parts``) and the sizes of the recipe,
not on which thread computed what or finished first, or on the number of PyTorch's threads.
"""

from __future__ import annotations

import functools
import itertools
import threading
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
# Pieces for each thread at most, for each adds its gradients once more; and the work that is worth
# a piece, in FLOPs.
_PIECES = 3
_PIECE = 8e9

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
    """Divide slots evenly, in order; there are fewer parts if there are too few slots.

    The larger parts come first: where threads take them one by one, the last ones end together.
    """
    parts = min(parts, len(slots))
    size, larger = divmod(len(slots), parts) if parts else (0, 0)
    cuts = [slots.start + size * i + min(i, larger) for i in range(parts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(cuts)]


def pieces(parts: int, slots: int, flops: float) -> int:
    """The number of pieces that the threads of some parts take in turn.

    With more pieces than threads, a thread on a slower or busier processor takes fewer of them,
    instead of being waited for. Each piece costs some milliseconds of its own, so only large
    micro-batches are divided further.

    Args:
        parts: threads.
        slots: of the micro-batch.
        flops: of the forward and backward pass of one slot.
    """
    each = int(slots / parts * flops / _PIECE)
    return min(parts * max(1, min(each, _PIECES)), slots)


def gradients(
    loss: Loss, slots: range, parts: int, parameters: Sequence[Tensor], pieces: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """Sum the losses and the gradients of all pieces.

    Args:
        loss: called once per piece, by whichever thread is free.
        slots: of the micro-batch.
        parts: number of threads.
        parameters: tensors to differentiate with respect to; the loss must depend on each.
        pieces: into which the slots are divided; the bits depend on it. 0 stands for ``parts``.
    """
    dealt = split(slots, pieces or parts)
    total = Sum(len(dealt))

    def work(number: int) -> Tensor:
        value = loss(dealt[number])
        total.add(number, list(torch.autograd.grad(value, parameters)))
        return value.detach()

    numbers = range(len(dealt))
    values = list(threads.pool(parts).map(work, numbers) if parts > 1 else map(work, numbers))
    return functools.reduce(torch.add, values), total.result


class Sum:
    """The sum of numbered lists of tensors, given by several threads in any order; contiguous.

    Neighbours are added as soon as both are there, then their sums, as in a tournament. Which of
    two came first changes no bit of their sum, so the result is a function of the number of lists
    alone. Of lists given about in order, few sums wait.

    Args:
        count: of the lists.
    """

    def __init__(self, count: int) -> None:
        self.result: list[Tensor] = []
        self._count = count
        self._waiting: dict[tuple[int, int], list[Tensor]] = {}  # by round and place in it
        self._lock = threading.Lock()

    def add(self, number: int, tensors: list[Tensor]) -> None:
        """Give the list of a number; its tensors may be overwritten."""
        tensors = [_writable(tensor) for tensor in tensors]
        entrants, place, turn = self._count, number, 0
        while entrants > 1:
            if place ^ 1 < entrants:  # the last of an odd round has no neighbour
                with self._lock:
                    other = self._waiting.pop((turn, place ^ 1), None)
                    if other is None:
                        self._waiting[turn, place] = tensors
                        return
                torch._foreach_add_(tensors, other)
            entrants, place, turn = (entrants + 1) // 2, place // 2, turn + 1
        # Here, not in the thread that waits for all: PyTorch would wake others for each tensor.
        self.result = [tensor.contiguous() for tensor in tensors]


def _writable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if values share memory or lie in an order of their own."""
    dense = tensor.is_contiguous() or (tensor.dim() > 1 and tensor.mT.is_contiguous())
    return tensor if dense else tensor.contiguous()


def run(work: Callable[[range], Result], slots: range, parts: int) -> list[Result]:
    """Call ``work`` on each part in its own thread; results are in the order of the parts."""
    if parts <= 1:
        return [work(slots)]
    return list(threads.pool(parts).map(work, split(slots, parts)))
