"""What is added to the stream: whether it is attention, an MLP, both or neither."""

from __future__ import annotations

from dataclasses import dataclass

from nanogpt_cli.modules.graph.attention_ops import Attention
from nanogpt_cli.modules.graph.override import Override
from nanogpt_cli.modules.graph.trace import Node, Trace
from nanogpt_cli.modules.graph.trunk import Addition, Trunk

# Operators that mix positions without an attention.
_MIXERS = ("convolution", "_convolution", "conv1d", "_fft_r2c", "_fft_c2c")


@dataclass(frozen=True)
class Term:
    """One summand of what is added: its value, kind and the factor on it."""

    value: int
    kind: str
    factor: float


class Branches:
    """Kinds of additions to one stream."""

    def __init__(self, trace: Trace, trunk: Trunk, heads: list[Attention], given: Override) -> None:
        self.trace, self.trunk, self.given = trace, trunk, given
        self.softmaxes = {one.softmax.index for one in heads}
        first = next((a for a in trunk.additions if self.computed(a)), None)
        self.start = first.node.index if first else len(trace.nodes)

    def computed(self, addition: Addition) -> bool:
        """Whether what is added was computed from the stream by products of matrices."""
        active = self.trace.values[addition.added].active
        if addition.light or not active or not addition.whole:
            return False
        return any(node.product for node in self._cone(addition.added))

    def kind(self, addition: Addition) -> str:
        """The kind of an addition, as in ``Write.kind``."""
        if kind := self.given.kind(self.origin(addition)):
            return kind
        if not self.computed(addition):
            made = self.trace.values[addition.added].node
            early = (addition.age if addition.light else made) < self.start
            return "embed" if early else "other"
        kinds = {term.kind for term in self.terms(addition)}
        return kinds.pop() if len(kinds) == 1 else "both" if "attn" in kinds else "mlp"

    def terms(self, addition: Addition) -> list[Term]:
        """The summands of an addition: several where attention and MLP are added to each other."""
        whole = addition.added
        factor = _factor(addition.node, whole)
        if kind := self.given.kind(self.origin(addition)):
            return [Term(whole, kind, factor)]
        found = self._summands(whole, factor)
        if {term.kind for term in found} == {"attn", "mlp"}:
            return found
        return [Term(whole, self._kind(whole), factor)]

    def _summands(self, value: int, factor: float) -> list[Term]:
        node = self.trace.maker(value)
        active = self.trace.active(node) if node else []
        if node is None or node.product or value in self.trunk.values:
            return [Term(value, self._kind(value), factor)]
        if node.name in ("add", "sub") and len(active) == 2:
            both = [self._summands(v, factor * _factor(node, v)) for v in active]
            if {term.kind for term in both[0]} != {term.kind for term in both[1]}:
                return both[0] + both[1]
        elif len(active) == 1 and node.name not in ("mul", "div", "native_layer_norm"):
            inner = self._summands(active[0], factor)
            if len(inner) > 1:
                return inner
        return [Term(value, self._kind(value), factor)]

    def _kind(self, value: int) -> str:
        cone = self._cone(value)
        if any(node.index in self.softmaxes for node in cone):
            return "attn"
        return "other" if any(node.name in _MIXERS for node in cone) else "mlp"

    def parallel(self, addition: Addition, before: Addition) -> bool:
        """Whether an addition was computed from the stream as it was before another addition."""
        read = [v for node in self._cone(addition.added) for v in self.trace.active(node)
                if v in self.trunk.values]  # fmt: skip
        return all(self.trace.values[v].node < before.node.index for v in read)

    def _cone(self, value: int) -> list[Node]:
        """The operators between the stream and a value."""
        found: dict[int, Node] = {}
        todo = [value]
        while todo:
            at = todo.pop()
            node = self.trace.maker(at)
            if node is None or at in self.trunk.values or node.index in found:
                continue
            found[node.index] = node
            todo += self.trace.active(node)
        return list(found.values())

    def origin(self, addition: Addition) -> str:
        """Path of the module that computed what is added."""
        value = addition.added
        own = len(addition.node.calls)
        while (node := self.trace.maker(value)) is not None:
            if len(node.calls) > own and node.calls[:own] == addition.node.calls:
                return self.trace.calls[node.calls[own]].path
            active = self.trace.active(node) or list(node.inputs)
            if node.product or not active:
                return node.frame
            value = active[-1]
        source = self.trace.values[value].source
        return source.parameter.rpartition(".")[0] if source else ""


def _factor(node: Node, value: int) -> float:
    """The factor that an addition puts on one of its operands."""
    alpha = float(node.kwargs.get("alpha", 1.0))
    second = len(node.inputs) > 1 and node.inputs[1] == value
    if node.name == "add":
        return alpha if second else 1.0
    if node.name == "sub":
        return -alpha if second else 1.0
    return 1.0
