"""Attention in the graph of a pass: where queries, keys and values meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nanogpt_cli.modules.graph.trace import Node, Trace

_SOFTMAX = ("_softmax", "_safe_softmax", "softmax")
# Position of the two matrices among the arguments of a product.
_FACTORS = {"baddbmm": 1, "addmm": 1, "addbmm": 1, "addmv": 1}


@dataclass(frozen=True)
class Attention:
    """One attention: values and nodes of ``softmax(q·k)·v``.

    Attributes:
        softmax: the node whose input are the scores and whose output are the weights.
        q, k, v: the values that the two products take.
        out: the value that the second product makes.
    """

    softmax: Node
    q: int
    k: int
    v: int
    out: int


def factors(node: Node) -> tuple[int, int] | None:
    """The two values that a product multiplies; ``None`` if they are not plain arguments."""
    first = _FACTORS.get(node.name, 0)
    taken = list(node.inputs[first : first + 2])
    return (taken[0], taken[1]) if len(taken) == 2 else None


def back(
    trace: Trace, value: int, stop: Callable[[int], bool] = lambda _: False
) -> Iterator[tuple[Node, int]]:
    """The products from which a value comes through other operators, each with what it made.

    Args:
        trace: the graph.
        value: where to begin.
        stop: values at which not to go further back.
    """
    seen, todo = {value}, [value]
    while todo:
        at = todo.pop()
        node = trace.maker(at)
        if node is None or stop(at):
            continue
        if node.product:
            yield node, at
            continue
        for before in trace.active(node):
            if before not in seen:
                seen.add(before)
                todo.append(before)


def ahead(
    trace: Trace, value: int, stop: Callable[[int], bool] = lambda _: False
) -> Iterator[tuple[Node, int]]:
    """The products that a value reaches through other operators, each with what it takes."""
    seen, todo = {value}, [value]
    while todo:
        at = todo.pop()
        if stop(at):
            continue
        for node in trace.users.get(at, ()):
            if node.product:
                yield node, at
                continue
            for after in node.outputs:
                if after not in seen and trace.values[after].active:
                    seen.add(after)
                    todo.append(after)


def attentions(trace: Trace) -> list[Attention]:
    """Every softmax between two products of activations, in the order in which they run."""
    found = []
    for node in trace.nodes:
        if node.name in _SOFTMAX and node.key is not None:
            one = _attention(trace, node)
            if one is not None:
                found.append(one)
    return found


def _attention(trace: Trace, softmax: Node) -> Attention | None:
    active = trace.values
    for score, _ in back(trace, softmax.inputs[0]):
        pair = factors(score)
        if pair is None or not (active[pair[0]].active and active[pair[1]].active):
            continue
        for mix, weights in ahead(trace, softmax.outputs[0]):
            both = factors(mix)
            if both is None or not (active[both[0]].active and active[both[1]].active):
                continue
            v = both[1] if both[0] == weights else both[0]
            return Attention(softmax, pair[0], pair[1], v, mix.outputs[0])
    return None
