"""The operators of one forward pass, as a graph.

It says which values each operator takes and makes; tensors themselves are not kept. Nodes of two
passes of the same module are matched by their keys, so a first pass decides what a second measures.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

# (path of the running module, which call of it, which operator of that call on activations).
Key = tuple[str, int, int]

# Operators that mix channels or positions; all others act on each entry, or rearrange them.
PRODUCTS = frozenset({
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "matmul", "linear",
    "convolution", "_convolution", "conv1d", "mkldnn_convolution", "_grouped_mm", "_scaled_mm",
})  # fmt: skip


@dataclass(frozen=True)
class Ref:
    """Stands for a tensor among the recorded arguments of an operator."""

    value: int


@dataclass(frozen=True)
class Source:
    """Which entries of a parameter a value holds, up to factors and constants.

    Attributes:
        parameter: the parameter's name.
        offset: position of the value's first entry in the parameter's memory.
        stride: steps in the parameter's memory along each axis of the value.
    """

    parameter: str
    offset: int
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """What one operator made of a tensor.

    Attributes:
        shape: its shape.
        node: index of the node that made it; -1 for what existed before the pass.
        active: whether it depends on the token ids.
        source: the parameter it comes from, if it depends on nothing else.
    """

    shape: tuple[int, ...]
    node: int
    active: bool
    source: Source | None = None

    @property
    def numel(self) -> int:
        """Number of entries."""
        size = 1
        for n in self.shape:
            size *= n
        return size


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes:
        index: its place in the pass.
        name: the operator's name, without the underscore of an in-place variant.
        op: the operator; ``None`` for a tensor that was changed through another view of its memory.
        args, kwargs: its arguments, with a ``Ref`` for each tensor.
        inputs, outputs: values in the order of the arguments and results.
        frame: path of the module that runs it.
        calls: calls of modules that are under way, from the outermost (indices of ``Trace.calls``).
        key: finds this node in another pass; ``None`` if it acts on no activation.
    """

    index: int
    name: str
    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    frame: str
    calls: tuple[int, ...]
    key: Key | None

    @property
    def product(self) -> bool:
        """Whether it multiplies matrices; operators of foreign libraries count as such."""
        return self.name in PRODUCTS or "::" in self.name or self.name.startswith("_scaled_dot")


@dataclass
class Call:
    """One call of a module: the values among its arguments and its results."""

    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...] = ()


@dataclass
class Trace:
    """The graph of one pass.

    Attributes:
        nodes, values, calls: operators, what they take and make, and calls of modules, in order.
        constants: small tensors of whole numbers that do not depend on the ids, such as indices.
        ids, output: the token ids, and the module's logits or last state.
    """

    nodes: list[Node] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    constants: dict[int, Tensor] = field(default_factory=dict)
    ids: int = -1
    output: int = -1

    def active(self, node: Node) -> list[int]:
        """The inputs of a node that depend on the token ids."""
        return [v for v in node.inputs if self.values[v].active]

    def maker(self, value: int) -> Node | None:
        """The node that made a value."""
        index = self.values[value].node
        return self.nodes[index] if index >= 0 else None

    @functools.cached_property
    def users(self) -> dict[int, list[Node]]:
        """The nodes that take each value."""
        found: dict[int, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                found.setdefault(value, []).append(node)
        return found


def tensors(items: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dictionaries, and in a library's output classes."""
    if isinstance(items, Tensor):
        yield items
    elif isinstance(items, list | tuple):
        for item in items:
            yield from tensors(item)
    elif isinstance(items, dict):
        for item in items.values():
            yield from tensors(item)


def replay(trace: Trace, value: int, ids: Tensor | None = None) -> Tensor:
    """Compute a value on the CPU that was made on the device ``meta``.

    Libraries ask for single numbers, such as whether positions follow each other. They depend on no
    weight.

    Args:
        trace: the graph so far.
        value: what to compute.
        ids: the token ids; without them nothing that depends on them can be computed.

    Raises:
        ValueError: it depends on more than the token ids.
    """
    if value == trace.ids and ids is not None:
        return ids.cpu()
    if value in trace.constants:
        return trace.constants[value]
    node = trace.maker(value)
    if node is None or node.op is None:
        raise ValueError("its course depends on values of weights, which are not there")

    def filled(items: Any) -> Any:
        if isinstance(items, Ref):
            return replay(trace, items.value, ids)
        if isinstance(items, tuple):
            return [filled(item) for item in items]
        if isinstance(items, dict):
            return {name: filled(item) for name, item in items.items()}
        return torch.device("cpu") if isinstance(items, torch.device) else items

    with _disable_current_modes():
        result = node.op(*filled(node.args), **filled(node.kwargs))
    results = list(tensors(result))
    return results[node.outputs.index(value)]
