"""Gradients of a module that never has all its values at once, by recomputing its blocks.

The reverse pass of a chain of blocks needs one block at a time: its input, its parameters and the
gradient at its output (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). Here
the code around the blocks runs once with gradients while the blocks only return what they returned
before. The graph of this pass says where each input of a block comes from and where each output
goes, so that any connection outside of the blocks is treated exactly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nanogpt_cli.init.probes import rms
from nanogpt_cli.modules.starts.block_calls import (
    Call,
    InexactError,
    around,
    leaf,
    record,
    same,
    tensors,
)
from nanogpt_cli.modules.starts.build import Built
from nanogpt_cli.modules.starts.meta import Slot, Slots
from nanogpt_cli.modules.starts.outer import OuterMaps, is_plain
from nanogpt_cli.modules.starts.streaming import places, streamed


@dataclass(frozen=True)
class StreamedGradients:
    """Gradients of the mean cross-entropy.

    Attributes:
        stream: root mean square of the gradient at the input of each block's call, in the order of
            the calls, and at the output of the last; empty if ``reason`` is set.
        parameters: Euclidean norm of the gradient by parameter name.
        loss: the cross-entropy.
        reason: why there are no gradients; empty if there are.
    """

    stream: list[float]
    parameters: dict[str, float]
    loss: float
    reason: str = ""


def stream_gradients(
    built: Built, blocks: Sequence[str], ids: Tensor, targets: Tensor
) -> StreamedGradients:
    """Gradients of a module's loss, with the values and gradients of one block at a time.

    Args:
        built: the module, with or without values; gradients that it holds are cleared.
        blocks: paths of its repeated blocks.
        ids: (B, T) tokens.
        targets: (B, T) next tokens.
    """
    module = built.module
    module.zero_grad(set_to_none=True)
    found = dict(places(module, blocks))
    chosen = {path: found[path] for path in blocks}
    slots = Slots(module)
    maps = [
        (slot.places[0][2], submodule)
        for path, submodule in found.items()
        if path not in chosen and is_plain(submodule)
        for slot in slots.below(submodule)
        if slot.places[0][1] == "weight" and slot.empty.requires_grad and len(slot.places) == 1
    ]
    outer = OuterMaps(maps)
    loss = math.nan
    try:
        with streamed(built, blocks):
            calls, loss = record(module, chosen, ids, targets)
            with outer.watching():
                total = around(module, chosen, calls, ids, targets)
            torch.autograd.backward(total, retain_graph=True)
            del total  # and with it the graph of the head
            reverse = _Reverse(built, slots, calls)
            reverse.run()
        return StreamedGradients(reverse.stream, reverse.parameters | outer.norms(), loss)
    except InexactError as error:
        return StreamedGradients([], {}, loss, str(error))
    finally:
        module.zero_grad(set_to_none=True)
        for _, submodule in maps:
            submodule.weight.requires_grad_()


class _Reverse:
    """The reverse pass over the calls of blocks, from the last to the first."""

    def __init__(self, built: Built, slots: Slots, calls: list[Call]) -> None:
        self._built, self._slots, self._calls = built, slots, calls
        inside = {call.path: slots.below(call.block) for call in calls}
        self._left = Counter(slot for call in calls for slot in inside[call.path])
        owned = {id(m) for call in calls for m in call.block.modules()}
        for slot in slots.all:  # what is also used around the blocks is noted at the end
            if any(id(m) not in owned for m, _, _ in slot.places):
                self._left[slot] = -1
        self.stream: list[float] = []
        self.parameters: dict[str, float] = {}

    def run(self) -> None:
        """Go through all calls, then note the gradients of the parameters around the blocks."""
        self.stream.append(_rms(self._calls[-1].outputs))
        for call in reversed(self._calls):
            self._back(call)
            self.stream.append(_rms(call.inputs))
        self.stream.reverse()
        for slot, left in self._left.items():
            if left < 0:
                self._note(slot)

    def _back(self, call: Call) -> None:
        """Recompute a block from its inputs and carry the gradient through it."""
        if self._built.fill is not None:
            self._built.fill(call.path, call.block)
        needed = iter([tensor.requires_grad for tensor in call.inputs])
        args, kwargs = pytree.tree_map(
            lambda value: leaf(value, next(needed)) if isinstance(value, Tensor) else value,
            (call.args, call.kwargs),
        )
        with torch.enable_grad():
            again = tensors(call.block.forward(*args, **kwargs))
        if not same(again, tensors(call.output)):
            raise InexactError(f"{call.path} returns other values when it is called again")
        flows = [
            (tensor, outer.grad)
            for tensor, outer in zip(again, call.outputs, strict=True)
            if outer.grad is not None and tensor.requires_grad
        ]
        if flows:
            torch.autograd.backward([t for t, _ in flows], [g for _, g in flows])
        for slot in self._slots.below(call.block):
            self._left[slot] -= 1
            if self._left[slot] == 0:  # an earlier call of the same block would need it again
                self._note(slot)
                if self._built.fill is not None:
                    slot.free()
        back = [
            (outer, inner.grad)
            for outer, inner in zip(call.inputs, tensors((args, kwargs)), strict=True)
            if inner.grad is not None
        ]
        if back:  # other calls go back through the same graph
            torch.autograd.backward([t for t, _ in back], [g for _, g in back], retain_graph=True)

    def _note(self, slot: Slot) -> None:
        parameter = slot.current
        if parameter.grad is not None:
            self.parameters[slot.places[0][2]] = float(torch.linalg.vector_norm(parameter.grad))
            parameter.grad = None


def _rms(received: list[Tensor]) -> float:
    """Root mean square of the gradient of the stream: the first tensor that depends on anything."""
    for tensor in received:
        if tensor.is_floating_point() and tensor.dim() >= 2 and tensor.requires_grad:
            grad = tensor.grad
            return math.nan if grad is None else rms(grad)
    return math.nan
