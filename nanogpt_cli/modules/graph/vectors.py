"""Roles of parameters that are no matrices: tables, gains, biases and factors."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from nanogpt_cli.modules.graph.attention_ops import Attention, back
from nanogpt_cli.modules.graph.blocks import Block, layer_at
from nanogpt_cli.modules.graph.flow import reach
from nanogpt_cli.modules.graph.trace import Node, Ref, Trace
from nanogpt_cli.modules.graph.trunk import Trunk

_LOOKUPS = ("embedding", "index", "index_select")
_GAIN = {"native_layer_norm": 2, "_fused_rms_norm": 2, "native_group_norm": 1}
_BIAS = {"native_layer_norm": 3, "native_group_norm": 2}
_CARRY = ("_to_copy", "view", "_unsafe_view", "reshape", "transpose", "clone", "unsqueeze", "add")


def vector_roles(
    module: nn.Module, trace: Trace, trunk: Trunk, heads: list[Attention], blocks: list[Block]
) -> Iterator[tuple[str, str, int]]:
    """Yield (parameter, role, block) for each use that is no product of matrices."""
    shapes = {name: p.shape for name, p in module.named_parameters()}
    meets = {v: True for one in heads for v in (one.q, one.k)}
    tables = _tables(trunk, blocks)
    for node in trace.nodes:
        layer = layer_at(blocks, node.index)
        for value in node.inputs:
            source = trace.values[value].source
            if source is None:
                continue
            if node.name in _LOOKUPS:
                role = _of_table(trace, node, trunk, tables)
            elif node.key is None:
                continue
            elif node.product:
                if node.args and node.args[0] == Ref(value) and node.name.startswith("add"):
                    yield source.parameter, "bias", layer
                continue
            else:
                role = _of_vector(trace, node, value, trunk, meets)
            if role == "scale" and len(shapes[source.parameter]) > 2:
                role = "other"
            yield source.parameter, role, layer


def _tables(trunk: Trunk, blocks: list[Block]) -> set[int]:
    """Values that are added to the stream before the first block."""
    early = [a for a in trunk.additions if a.node.index < blocks[0].first]
    return {v for a in early for v in (a.added, a.carried)}


def _of_table(trace: Trace, node: Node, trunk: Trunk, tables: set[int]) -> str:
    """The role of a table in which something is looked up."""
    made = node.outputs[0]
    if made == trunk.seed or _factorised(trace, node, trunk):
        return "wte"
    values, todo = {made}, [made]  # up to the first sum with something else
    while todo:
        for user in trace.users.get(todo.pop(), ()):
            if user.product or not user.outputs or user.outputs[0] in values:
                continue
            if user.name in ("add", "sub") and len(user.inputs) > 1:
                if not values & tables and _computed(trace, node):
                    return "bias"  # one of several, chosen by what is computed
                continue
            values.add(user.outputs[0])
            todo.append(user.outputs[0])
    if not values & tables:
        return "other"
    return "wpe" if node.key is None or _counted(trace, node) else "wte"


def _computed(trace: Trace, node: Node) -> bool:
    """Whether what is looked up was chosen by products of matrices, as experts are."""
    return any(True for index in trace.active(node) for _ in back(trace, index))


def _counted(trace: Trace, node: Node) -> bool:
    """Whether what is looked up is a place that was counted, as where padding is skipped."""
    todo = list(trace.active(node))
    while todo:
        before = trace.maker(todo.pop())
        if before is not None:
            if before.name in ("cumsum", "ne"):
                return True
            todo += trace.active(before)
    return False


def _factorised(trace: Trace, node: Node, trunk: Trunk) -> bool:
    """Whether a lookup is multiplied with a matrix before it becomes the stream."""
    way = reach(trace, node.outputs[0], trunk.values)
    seed = trace.values[trunk.seed].node
    return any(product == seed for product, _ in way.products)


def _of_vector(trace: Trace, node: Node, value: int, trunk: Trunk, meets: dict[int, bool]) -> str:
    """The role of a vector that an operator on activations takes."""
    place = next((i for i, item in enumerate(node.args) if item == Ref(value)), -1)
    if node.name in _BIAS and place == _BIAS[node.name]:
        return "bias"
    others = [v for v in node.inputs if v != value and trace.values[v].active]
    single = trace.values[value].numel == 1
    multiplied = node.name == "mul" and others and not single
    if node.name in _GAIN or (multiplied and normalised(trace, others[0])):
        way = reach(trace, node.outputs[0], trunk.values)
        return "qk_norm" if any(v in meets for _, v in way.linear) else "norm"
    if node.name in ("add", "sub"):
        shape = trace.values[value].shape
        per_position = len(shape) >= 2 and max(shape[:-1]) > 1
        return "wpe" if per_position and node.outputs[0] in trunk.values else "bias"
    return "scale" if node.name in ("mul", "div", "addcmul", "lerp") else "other"


def normalised(trace: Trace, value: int, *, with_gain: bool = False) -> bool:
    """Whether a value was divided by a statistic of its own channels, or is a norm's result.

    Args:
        trace: the graph.
        value: the value.
        with_gain: whether it may have been multiplied with constants since.
    """
    for _ in range(6):
        node = trace.maker(value)
        if node is None:
            return False
        active = trace.active(node)
        if node.name in _GAIN:
            return True
        if node.name in ("mul", "div") and len(active) == 2:
            return any(trace.values[v].shape[-1:] in ((1,), ()) for v in active)
        carries = node.name in _CARRY or (with_gain and node.name == "mul")
        if not carries or len(active) != 1:
            return False
        value = active[0]
    return False
