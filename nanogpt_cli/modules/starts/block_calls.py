"""Calls of blocks: what they receive and return, and the graph of the code around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nanogpt_cli.modules.starts.streaming import logits_of

# What a block may receive besides tensors: values that carry nothing from block to block.
_PLAIN = (NoneType, bool, int, float, str, torch.dtype, torch.device)
# Relative difference at which a repeated computation is another one; rounding stays far below.
_OTHER = 1e-4


@dataclass
class Call:
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


class InexactError(Exception):
    """Blocks are connected in a way that recomputing them one by one does not follow."""


def record(
    module: nn.Module, blocks: dict[str, nn.Module], ids: Tensor, targets: Tensor
) -> tuple[list[Call], float]:
    """Run once without gradients and note every call of a block.

    Raises:
        InexactError: blocks may hand each other something that no argument or result shows.
    """
    calls: list[Call] = []
    entered: list[list[int]] = []
    kept = _kept_tensors(blocks)
    handles: list[Any] = []

    def enter(_block: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append([id(value) for value in pytree.tree_leaves((args, kwargs))])

    for path, block in blocks.items():

        def leave(block: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            leaves = pytree.tree_leaves((args, kwargs))
            if [id(value) for value in leaves] != entered.pop():
                raise InexactError(f"{path} writes into a container that it receives")
            for value in (*leaves, *pytree.tree_leaves(output)):
                if not isinstance(value, (Tensor, *_PLAIN)):
                    kind = type(value).__name__
                    raise InexactError(f"{path} exchanges a {kind}, which may hold tensors")
            calls.append(Call(path, block, args, kwargs, output))

        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(block.register_forward_hook(leave, with_kwargs=True))
    try:
        with torch.no_grad():
            loss = float(_loss(module(ids), targets))
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise InexactError("none of the blocks was called")
    for name, value in _kept_tensors(blocks).items():
        if value is not kept.get(name):
            raise InexactError(f"{name[0]} keeps the tensor {name[1]!r} after its call")
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


def around(
    module: nn.Module,
    blocks: dict[str, nn.Module],
    calls: list[Call],
    ids: Tensor,
    targets: Tensor,
) -> Tensor:
    """The loss, with the graph of the code around the blocks: they return what they did before."""
    pending = iter(calls)

    def returned(path: str, args: Any, kwargs: Any) -> Any:
        call = next(pending, None)
        given = tensors((args, kwargs))
        known = tensors((call.args, call.kwargs)) if call and call.path == path else []
        if call is None or not given or not same(given, known):
            raise InexactError(f"{path} receives other values when the pass is repeated")
        call.inputs = given
        for tensor in given:
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.retain_grad()
        output = pytree.tree_map(lambda value: leaf(value, True), call.output)
        call.outputs = tensors(output)
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


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested containers, in order."""
    return [value for value in pytree.tree_leaves(tree) if isinstance(value, Tensor)]


def leaf(value: Any, needed: bool) -> Any:
    """A tensor without history; with gradients if it can have them and they are needed."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(needed and value.is_floating_point())


def same(some: list[Tensor], others: list[Tensor]) -> bool:
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
