"""What becomes of a value in the graph of a pass, up to the next products of matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nanogpt_cli.modules.graph.trace import Node, Ref, Trace, replay

NONLINEAR = frozenset({
    "silu", "gelu", "relu", "sigmoid", "tanh", "erf", "pow", "square", "exp", "softplus", "mish",
    "elu", "selu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "threshold", "clamp",
    "clamp_min", "maximum", "softmax", "_softmax", "_safe_softmax", "abs", "glu", "log_sigmoid",
    "where", "logical_not", "gt", "ge", "topk", "sort",
})  # fmt: skip
CHOOSING = frozenset({"topk", "sort", "argmax", "max"})
_REARRANGE = frozenset({
    "view", "_unsafe_view", "reshape", "transpose", "permute", "t", "slice", "select", "split",
    "split_with_sizes", "unbind", "unsqueeze", "squeeze", "expand", "cat", "stack", "narrow",
    "index_select", "flip", "roll", "index",
})  # fmt: skip


@dataclass
class Reach:
    """What a value reaches before the next product.

    Attributes:
        products: (product, value that it takes); ``linear`` has those reached without activation.
        linear: see ``products``.
        nodes: operators on the way, in the order in which they run.
        values: values on the way.
        stream: whether it is added to the stream.
        output: whether it becomes the module's result.
    """

    products: set[tuple[int, int]] = field(default_factory=set)
    linear: set[tuple[int, int]] = field(default_factory=set)
    nodes: list[Node] = field(default_factory=list)
    values: set[int] = field(default_factory=set)
    stream: bool = False
    output: bool = False

    def through(self, names: frozenset[str]) -> list[Node]:
        """Operators of these names on the way."""
        return [node for node in self.nodes if node.name in names]


def reach(trace: Trace, value: int, stop: set[int]) -> Reach:
    """Follow a value forward; ``stop`` holds the values of the stream."""
    found = Reach()
    seen: set[tuple[int, bool]] = set()
    nodes: dict[int, Node] = {}
    todo = [(value, False)]
    while todo:
        at, bent = todo.pop()
        if (at, bent) in seen or (bent and (at, False) in seen):
            continue
        seen.add((at, bent))
        if at in stop:
            found.stream = True
            continue
        found.values.add(at)
        found.output |= at == trace.output
        for node in trace.users.get(at, ()):
            if node.product:
                found.products.add((node.index, at))
                if not bent:
                    found.linear.add((node.index, at))
                continue
            nodes[node.index] = node
            after = bent or node.name in NONLINEAR
            todo += [(v, after) for v in node.outputs if trace.values[v].active]
    found.nodes = [nodes[i] for i in sorted(nodes)]
    return found


def labels(trace: Trace, value: int, on_the_way: Reach) -> dict[int, Tensor]:
    """For values that come from ``value``, which of its channels (last axis) each entry is from.

    A value that combines channels, such as a rotation of pairs, has the label of one of them.
    """
    shape = trace.values[value].shape
    found = {value: torch.arange(shape[-1], dtype=torch.int32).expand(shape)}
    for node in on_the_way.nodes:
        known = [v for v in node.inputs if v in found]
        if not known:
            continue
        results = _relabel(trace, node, found, known)
        for made, result in zip(node.outputs, results, strict=False):
            if tuple(result.shape) == trace.values[made].shape:
                found[made] = result
    return found


def _relabel(
    trace: Trace, node: Node, found: dict[int, Tensor], known: list[int]
) -> tuple[Tensor, ...]:
    if node.name == "glu":
        half = found[known[0]].chunk(2, int(node.args[1]) if len(node.args) > 1 else -1)
        return (half[0],)
    if node.name in _REARRANGE:
        return _rearranged(trace, node, found, known[0])
    if not node.outputs:
        return ()
    shape = trace.values[node.outputs[0]].shape
    for value in known:
        label = found[value]
        if label.dim() <= len(shape) and (not shape or label.shape[-1:] == shape[-1:]):
            try:
                return (label.expand(shape),)
            except RuntimeError:
                continue
    return ()


def _rearranged(
    trace: Trace, node: Node, found: dict[int, Tensor], first: int
) -> tuple[Tensor, ...]:
    """The same operator on labels; what has none gets -1."""
    if node.name in ("view", "_unsafe_view", "reshape"):
        return (found[first].reshape(trace.values[node.outputs[0]].shape),)

    def label(value: int) -> Tensor:
        if node.name.startswith("index") and value != node.inputs[0]:
            return replay(trace, value)
        missing = torch.tensor(-1, dtype=torch.int32)
        return found.get(value, missing.expand(trace.values[value].shape))

    try:
        result = node.op(*_filled(node.args, label), **_filled(node.kwargs, label))
    except (RuntimeError, TypeError, IndexError, ValueError):  # indices that are not known
        return ()
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _filled(items: Any, label: Callable[[int], Tensor]) -> Any:
    if isinstance(items, Ref):
        return label(items.value)
    if isinstance(items, tuple):
        filled = [_filled(item, label) for item in items]
        return filled if items and not isinstance(items[0], int) else tuple(filled)
    if isinstance(items, dict):
        return {name: _filled(item, label) for name, item in items.items()}
    return items


def channels(label: Tensor) -> Tensor:
    """The channels that occur in labels, ascending."""
    found: Tensor = torch.unique(label[label >= 0])
    return found.long()
