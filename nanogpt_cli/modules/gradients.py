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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nanogpt_cli.init.probes import rms
from nanogpt_cli.modules.build import Built
from nanogpt_cli.modules.meta import Slot, Slots
from nanogpt_cli.modules.outer import OuterMaps, is_plain
from nanogpt_cli.modules.streaming import logits_of, places, streamed

# What a block may receive besides tensors: values that carry nothing from block to block.
_PLAIN = (NoneType, bool, int, float, str, torch.dtype, torch.device)
# Relative difference at which a repeated computation is another one; rounding stays far below.
_OTHER = 1e-4


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


@dataclass
class _Call:
    """One call of a block.

    Attributes:
        path, block: which block.
        args, kwargs, output: what it received and returned in the pass without gradients.
        inputs: the tensors it receives in the graph of the code around the blocks.
        outputs: the tensors it returns there, leaves of that graph.
    """

    path: str
    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


class _InexactError(Exception):
    """Blocks are connected in a way that recomputing them one by one does not follow."""


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
            calls, loss = _forward(module, chosen, ids, targets)
            with outer.watching():
                total = _around(module, chosen, calls, ids, targets)
            torch.autograd.backward(total, retain_graph=True)
            del total  # and with it the graph of the head
            reverse = _Reverse(built, slots, calls)
            reverse.run()
        return StreamedGradients(reverse.stream, reverse.parameters | outer.norms(), loss)
    except _InexactError as error:
        return StreamedGradients([], {}, loss, str(error))
    finally:
        module.zero_grad(set_to_none=True)
        for _, submodule in maps:
            submodule.weight.requires_grad_()


def _forward(
    module: nn.Module, blocks: dict[str, nn.Module], ids: Tensor, targets: Tensor
) -> tuple[list[_Call], float]:
    """Run once without gradients and note every call of a block.

    Raises:
        _InexactError: blocks may hand each other something that no argument or result shows.
    """
    calls: list[_Call] = []
    entered: list[list[int]] = []
    kept = _kept_tensors(blocks)
    handles: list[Any] = []

    def enter(_block: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append([id(value) for value in pytree.tree_leaves((args, kwargs))])

    for path, block in blocks.items():

        def leave(block: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            leaves = pytree.tree_leaves((args, kwargs))
            if [id(value) for value in leaves] != entered.pop():
                raise _InexactError(f"{path} writes into a container that it receives")
            for value in (*leaves, *pytree.tree_leaves(output)):
                if not isinstance(value, (Tensor, *_PLAIN)):
                    kind = type(value).__name__
                    raise _InexactError(f"{path} exchanges a {kind}, which may hold tensors")
            calls.append(_Call(path, block, args, kwargs, output))

        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(block.register_forward_hook(leave, with_kwargs=True))
    try:
        with torch.no_grad():
            loss = float(_loss(module(ids), targets))
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise _InexactError("none of the blocks was called")
    for name, value in _kept_tensors(blocks).items():
        if value is not kept.get(name):
            raise _InexactError(f"{name[0]} keeps the tensor {name[1]!r} after its call")
    return calls, loss


def _kept_tensors(blocks: dict[str, nn.Module]) -> dict[tuple[str, str], Tensor]:
    """Tensors that blocks hold as plain attributes: in them values could pass between calls."""
    return {
        (f"{path}.{inner}" if inner else path, name): value
        for path, block in blocks.items()
        for inner, submodule in block.named_modules()
        for name, value in vars(submodule).items()
        if isinstance(value, Tensor)
    }


def _loss(output: Any, targets: Tensor) -> Tensor:
    logits = logits_of(output)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1))


def _around(
    module: nn.Module,
    blocks: dict[str, nn.Module],
    calls: list[_Call],
    ids: Tensor,
    targets: Tensor,
) -> Tensor:
    """The loss, with the graph of the code around the blocks: they return what they did before."""
    pending = iter(calls)

    def returned(path: str, args: Any, kwargs: Any) -> Any:
        call = next(pending, None)
        given = _tensors((args, kwargs))
        known = _tensors((call.args, call.kwargs)) if call and call.path == path else []
        if call is None or not given or not _same(given, known):
            raise _InexactError(f"{path} receives other values when the pass is repeated")
        call.inputs = given
        for tensor in given:
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.retain_grad()
        output = pytree.tree_map(lambda value: _leaf(value, True), call.output)
        call.outputs = _tensors(output)
        return output

    with torch.enable_grad(), _replaced(blocks, returned):
        return _loss(module(ids), targets)


@contextmanager
def _replaced(blocks: dict[str, nn.Module], returned: Any) -> Iterator[None]:
    """Let calls of blocks return given values; neither their forward nor their hooks are run."""
    for path, block in blocks.items():

        def call(*args: Any, path: str = path, **kwargs: Any) -> Any:
            return returned(path, args, kwargs)

        block.__dict__["_call_impl"] = call  # what nn.Module.__call__ calls
    try:
        yield
    finally:
        for block in blocks.values():
            del block.__dict__["_call_impl"]


class _Reverse:
    """The reverse pass over the calls of blocks, from the last to the first."""

    def __init__(self, built: Built, slots: Slots, calls: list[_Call]) -> None:
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

    def _back(self, call: _Call) -> None:
        """Recompute a block from its inputs and carry the gradient through it."""
        if self._built.fill is not None:
            self._built.fill(call.path, call.block)
        needed = iter([tensor.requires_grad for tensor in call.inputs])
        args, kwargs = pytree.tree_map(
            lambda value: _leaf(value, next(needed)) if isinstance(value, Tensor) else value,
            (call.args, call.kwargs),
        )
        with torch.enable_grad():
            again = _tensors(call.block.forward(*args, **kwargs))
        if not _same(again, _tensors(call.output)):
            raise _InexactError(f"{call.path} returns other values when it is called again")
        flows = [
            (tensor, outer.grad)
            for tensor, outer in zip(again, call.outputs, strict=True)
            if outer.grad is not None and tensor.requires_grad
        ]
        if flows:
            torch.autograd.backward([t for t, _ in flows], [g for _, g in flows])
        for slot in self._slots.below(call.block):
            if self._left[slot] > 0:
                self._left[slot] -= 1
                if self._left[slot] == 0:
                    self._note(slot)
                if self._built.fill is not None and self._left[slot] == 0:
                    slot.free()
        back = [
            (outer, inner.grad)
            for outer, inner in zip(call.inputs, _tensors((args, kwargs)), strict=True)
            if inner.grad is not None
        ]
        if back:  # other calls go back through the same graph
            torch.autograd.backward([t for t, _ in back], [g for _, g in back], retain_graph=True)

    def _note(self, slot: Slot) -> None:
        parameter = slot.current
        if parameter.grad is not None:
            self.parameters[slot.places[0][2]] = float(torch.linalg.vector_norm(parameter.grad))
            parameter.grad = None


def _tensors(tree: Any) -> list[Tensor]:
    return [value for value in pytree.tree_leaves(tree) if isinstance(value, Tensor)]


def _leaf(value: Any, needed: bool) -> Any:
    """A tensor without history; with gradients if it can have them and they are needed."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(needed and value.is_floating_point())


def _same(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether two computations gave the same up to rounding."""
    if [t.shape for t in some] != [t.shape for t in others]:
        return False
    for a, b in zip((t.detach() for t in some), others, strict=True):
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return False
        elif not torch.equal(a, b):
            # A mask may hold infinities and the smallest number there is.
            where = a.isfinite() & (a.abs() < 1e30)
            apart = torch.linalg.vector_norm((a - b)[where])
            if not float(apart) <= _OTHER * float(torch.linalg.vector_norm(b[where])):
                return False
    return True


def _rms(tensors: list[Tensor]) -> float:
    """Root mean square of the gradient of the stream: the first tensor that depends on anything."""
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dim() >= 2 and tensor.requires_grad:
            grad = tensor.grad
            return math.nan if grad is None else rms(grad)
    return math.nan
