"""The repeated blocks of a module: which calls of which submodules add to the stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from nanogpt_cli.errors import UserError
from nanogpt_cli.modules.graph.trace import Call, Trace
from nanogpt_cli.modules.graph.trunk import Addition, Trunk


@dataclass(frozen=True)
class Block:
    """One block as it ran.

    Attributes:
        path: path of its module; empty if it is a part of a longer function.
        call: index of its call in the trace; -1 without a module.
        first, last: indices of its first node and of the last.
        enters, leaves: values of the stream before and after it.
    """

    path: str
    call: int
    first: int
    last: int
    enters: int
    leaves: int


def find_blocks(
    trace: Trace,
    trunk: Trunk,
    branches: list[Addition],
    attends: Sequence[bool],
    given: Sequence[str] = (),
) -> list[Block]:
    """The blocks in the order in which they run.

    They are the calls of the members of a list (``ModuleList``, ``Sequential``) which hold the
    additions; else several calls of one class side by side; else what lies between two attentions.

    Args:
        trace: the graph.
        trunk: its stream.
        branches: those of its additions that were computed from it.
        attends: whether each of them is attention.
        given: paths of the blocks, if they are known.

    Raises:
        UserError: the stream passes none of the given blocks, or not all that ran.
    """
    if given:
        calls = [i for i, one in enumerate(trace.calls) if one.path in given]
        known = [_of_call(trace, trunk, i, branches) for i in calls]
        found = [block for block in known if block is not None]
        if not found or len(found) < len(known):
            raise UserError("blocks: the residual stream does not pass all of them")
        return found
    for calls in (_members(trace, branches, attends), _siblings(branches)):
        if calls:
            blocks = [_of_call(trace, trunk, index, branches) for index in dict.fromkeys(calls)]
            if all(block is not None for block in blocks):
                return [block for block in blocks if block is not None]
    return _without_modules(trace, branches, attends)


def likely_blocks(module: nn.Module) -> tuple[str, ...]:
    """Members of the list with the most parameters, before anything was watched."""
    lists = [(path, child) for path, child in module.named_modules()
             if isinstance(child, nn.ModuleList) and len(child)]  # fmt: skip
    if not lists:
        return ()
    path, largest = max(lists, key=lambda one: sum(p.numel() for p in one[1].parameters()))
    return tuple(f"{path}.{i}" for i in range(len(largest)))


def layer_at(blocks: list[Block], index: int) -> int:
    """The block that runs a node; for one between two blocks the next; -1 before and after all."""
    if not blocks or index < blocks[0].first or index > blocks[-1].last:
        return -1
    return next(i for i, block in enumerate(blocks) if index <= block.last)


def _members(trace: Trace, branches: list[Addition], attends: Sequence[bool]) -> list[int]:
    """The outermost call of a list's member for each addition in one; deeper if it holds several.

    There are none if some attention is in no list.
    """
    chains = []
    heads = []
    for addition, attention in zip(branches, attends, strict=True):
        chain = [c for c in addition.node.calls if trace.calls[c].path.rpartition(".")[2].isdigit()]
        if attention and not chain:
            return []
        if chain:
            chains.append(chain)
            heads.append(attention)
    if not chains:
        return []
    depth = 0
    while True:
        calls = [chain[depth] for chain in chains]
        crowded = any(
            sum(t for c, t in zip(calls, heads, strict=True) if c == one) > 1 for one in calls
        )
        if not crowded or any(len(chain) <= depth + 1 for chain in chains):
            return calls
        depth += 1


def _siblings(branches: list[Addition]) -> list[int]:
    """For each addition, the outermost call that does not hold them all."""
    depth = 0
    while all(len(a.node.calls) > depth for a in branches):
        calls = [a.node.calls[depth] for a in branches]
        if len(set(calls)) > 1:
            return calls
        depth += 1
    return []


def _of_call(trace: Trace, trunk: Trunk, call: int, branches: list[Addition]) -> Block | None:
    own = [a for a in branches if call in a.node.calls]
    about: Call = trace.calls[call]
    made = [v for v in about.inputs if v in trunk.values]
    left = [v for v in about.outputs if v in trunk.values or v in trunk.after]
    if not made or not left:
        return None
    inside = [node.index for node in trace.nodes if call in node.calls]
    enters = max(made, key=lambda v: trace.values[v].node)
    leaves = max(left, key=lambda v: trace.values[v].node)
    if own and trace.values[leaves].node < own[0].node.index:
        return None
    return Block(about.path, call, inside[0], inside[-1], enters, leaves)


def _without_modules(
    trace: Trace, branches: list[Addition], attends: Sequence[bool]
) -> list[Block]:
    """A block begins with each attention; each addition is one if there is none."""
    starts = [i for i, attention in enumerate(attends) if attention] or list(range(len(branches)))
    starts[0] = 0
    found: list[Block] = []
    for n, start in enumerate(starts):
        end = starts[n + 1] if n + 1 < len(starts) else len(branches)
        first, last = branches[start], branches[end - 1]
        leaves = branches[end].carried if end < len(branches) else last.result
        before = found[-1].last + 1 if found else trace.values[first.carried].node + 1
        found.append(Block("", -1, before, last.node.index, first.carried, leaves))
    return found
