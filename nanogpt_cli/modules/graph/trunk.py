"""The residual stream in the graph of a pass, by data flow alone.

A value is *light* if it comes from the embedding without passing a product of matrices: through
views, casts, factors, norms, and sums with anything. The stream consists of the light values on the
way to the last addition. What a pre-norm gives to its branch is light too, but nothing is added to
it; the result of a post-norm is carried on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nanogpt_cli.modules.graph.trace import Node, Trace

_SUMS = ("add", "sub", "rsub", "addcmul", "lerp")
_NORMS = ("native_layer_norm", "_fused_rms_norm", "rms_norm", "native_group_norm")
_REDUCTIONS = (
    "mean", "sum", "var", "std", "var_mean", "linalg_vector_norm", "norm", "amax", "amin",
)  # fmt: skip


@dataclass(frozen=True)
class Addition:
    """One addition to the stream.

    Attributes:
        node: the operator.
        carried: the stream before it.
        added: what is added; it depends on the token ids, or is a table of positions.
        result: the stream after it.
        light: whether what is added is itself a former state of the stream.
        age: index of the node that made that state; -1 for the embedding.
        whole: whether it is as large as the stream, and not for some positions only.
    """

    node: Node
    carried: int
    added: int
    result: int
    light: bool = False
    age: int = -1
    whole: bool = True


@dataclass
class Trunk:
    """The residual stream.

    Attributes:
        seed: its first value.
        values: all its values up to the last addition.
        additions: in the order in which they happen.
        norms: nodes that normalise a value of the stream, each with that value.
        after: light values that come after the last addition.
    """

    seed: int
    values: set[int] = field(default_factory=set)
    additions: list[Addition] = field(default_factory=list)
    norms: list[tuple[Node, int]] = field(default_factory=list)
    after: set[int] = field(default_factory=set)


def find_trunk(trace: Trace, lookups: list[Node]) -> Trunk | None:
    """The stream that begins at one of these embedding lookups; ``None`` if nothing is added.

    A factorised embedding is multiplied with a matrix first; the stream then begins there.
    """
    seeds = [node.outputs[0] for node in lookups]
    tried: set[int] = set()
    while seeds:
        seed = seeds.pop(0)
        tried.add(seed)
        light = _Light(trace, seed)
        if trunk := light.trunk():
            return trunk
        seeds += [
            node.outputs[0]
            for node in trace.nodes
            if node.product and node.outputs and node.outputs[0] not in tried
            and any(v in light.full for v in node.inputs)
        ][:1]  # fmt: skip
        if len(tried) > 8:
            break
    return None


class _Light:
    """Values that come from ``seed`` without a product on the way."""

    def __init__(self, trace: Trace, seed: int) -> None:
        self.trace, self.seed = trace, seed
        self.size = trace.values[seed].numel
        self.full: dict[int, tuple[int, ...]] = {seed: ()}  # value -> the light values before it
        self.age: dict[int, int] = {seed: -1}  # the last addition that a value holds
        self.statistics: set[int] = set()  # means, variances and the like
        self.additions: dict[int, Addition] = {}
        self.norms: list[tuple[Node, int]] = []
        for node in trace.nodes[trace.values[seed].node + 1 :]:
            if not node.product:
                self._pass(node)

    def _pass(self, node: Node) -> None:
        active = self.trace.active(node)
        full = [v for v in active if v in self.full]
        others = [v for v in active if v not in self.full and v not in self.statistics]
        if not node.outputs or not (full or any(v in self.statistics for v in active)):
            return
        made = node.outputs[0]
        if others:
            if node.name in _SUMS and len(full) == 1 and self._same_size(made, full[0], others[0]):
                whole = self.trace.values[made].numel == self.size
                self.additions[made] = Addition(node, full[0], others[0], made, whole=whole)
                self.full[made] = (full[0],)
                self.age[made] = node.index
            return
        if not full or (node.name in _REDUCTIONS and self._smaller(made, full[0])):
            self.statistics.update(node.outputs)
            return
        self.full[made] = tuple(full)
        self.age[made] = max(self.age[v] for v in full)
        self.statistics.update(node.outputs[1:])
        scaled = node.name in ("mul", "div") and len(full) < len(active)
        if node.name in _NORMS or scaled:
            self.norms.append((node, full[0]))
        self._sum_of_light(node, full, made)

    def _sum_of_light(self, node: Node, full: list[int], made: int) -> None:
        """Record a sum with a former state of the stream or with a table of positions."""
        if node.name not in _SUMS:
            return
        if len(full) == 2 and self._same_size(made, *full):
            new, old = sorted(full, key=lambda v: -self.age[v])  # the first of equals is carried
            self.additions[made] = Addition(node, new, old, made, light=True, age=self.age[old])
            return
        tables = [v for v in node.inputs if v not in full and self._per_position(v)]
        if len(full) == 1 and tables:
            self.additions[made] = Addition(node, full[0], tables[0], made)

    def _per_position(self, value: int) -> bool:
        shape = self.trace.values[value].shape
        return len(shape) >= 2 and shape[-1] > 1 and max(shape[:-1]) > 1

    def _same_size(self, made: int, *values: int) -> bool:
        return len({self.trace.values[v].numel for v in (made, *values)}) == 1

    def _smaller(self, made: int, than: int) -> bool:
        return self.trace.values[made].numel < self.trace.values[than].numel

    def trunk(self) -> Trunk | None:
        """What of these values is on the way to the last addition."""
        heavy = [v for v, a in self.additions.items() if a.whole and self._of_branch(a)]
        if not heavy:
            return None
        last = heavy[-1]
        found = Trunk(self.seed)
        todo = [last]
        while todo:
            value = todo.pop()
            if value not in found.values:
                found.values.add(value)
                todo += self.full[value]
        after = {last}
        for value, before in self.full.items():  # in the order in which they were made
            if after.intersection(before):
                after.add(value)
        found.after = after - {last}
        kept = found.values | found.after
        found.additions = [a for v, a in self.additions.items() if v in found.values]
        read = [(node, self._origin(value, kept)) for node, value in self.norms]
        found.norms = [(node, value) for node, value in read if value in kept]
        return found

    def _origin(self, value: int, kept: set[int]) -> int:
        """The value of the stream from which casts and the like made a norm's argument."""
        normalised = {node.outputs[0] for node, _ in self.norms}
        while value not in kept and value not in normalised and self.full[value]:
            value = self.full[value][0]
        return value

    def _of_branch(self, addition: Addition) -> bool:
        """Whether what is added comes from a product of matrices."""
        return addition.added not in self.full and self.trace.values[addition.added].active
