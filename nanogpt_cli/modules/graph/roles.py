"""Roles of parameters by their position in the data flow of a pass, never by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nanogpt_cli.modules.anatomy import MATRICES, Part
from nanogpt_cli.modules.graph.attention_ops import Attention, back
from nanogpt_cli.modules.graph.blocks import Block
from nanogpt_cli.modules.graph.flow import CHOOSING, NONLINEAR, Reach, channels, labels, reach
from nanogpt_cli.modules.graph.override import Override
from nanogpt_cli.modules.graph.parts import Use, make_parts, same
from nanogpt_cli.modules.graph.products import Projection, projections
from nanogpt_cli.modules.graph.trace import Node, Trace
from nanogpt_cli.modules.graph.trunk import Trunk
from nanogpt_cli.modules.graph.vectors import vector_roles


@dataclass
class Found:
    """What ``find_roles`` gives.

    Attributes:
        parts: every parameter of the module, by role.
        tied: whether the token embedding is the head too.
        preact: (block, value) of what an MLP's activation takes.
        hidden: (block, value) of what an MLP's last matrix takes.
    """

    parts: tuple[Part, ...] = ()
    tied: bool = False
    preact: list[tuple[int, int]] = field(default_factory=list)
    hidden: list[tuple[int, int]] = field(default_factory=list)


def find_roles(
    module: nn.Module,
    trace: Trace,
    trunk: Trunk,
    heads: list[Attention],
    blocks: list[Block],
    given: Override,
) -> Found:
    """The parts of a module, and where its MLPs' activations are."""
    finder = _Finder(module, trace, trunk, heads, blocks, given)
    finder.matrices()
    uses = finder.uses
    for name, role, layer in vector_roles(module, trace, trunk, heads, blocks):
        known = uses.setdefault(name, [])
        role = given.role(name) or role
        matrix = role != "wte" and any(use.role in (*MATRICES, "lm_head") for use in known)
        if not matrix and not any(use.role == role for use in known):
            known.append(Use(role, layer, None))
    for known in uses.values():
        if {"wte", "lm_head"} <= {use.role for use in known}:  # tied: named as the first is
            finder.found.tied = True
            known[:] = [use for use in known if use.role == "wte"]
    finder.found.parts = tuple(make_parts(module, uses))
    return finder.found


class _Finder:
    def __init__(
        self,
        module: nn.Module,
        trace: Trace,
        trunk: Trunk,
        heads: list[Attention],
        blocks: list[Block],
        given: Override,
    ) -> None:
        self.given = given
        self.trace = trace
        self.blocks = blocks
        self.shapes = {name: p.shape for name, p in module.named_parameters()}
        self.stream = trunk.values
        self.slots: dict[int, str] = {}
        for one in heads:
            self.slots |= {one.q: "q", one.k: "k", one.v: "v"}
        self.mixed = {one.out for one in heads}
        self.uses: dict[str, list[Use]] = {}
        self.found = Found()
        self.all = list(projections(trace, blocks))
        self.by_node = {p.node.index: p for p in self.all}
        self.reach: dict[int, Reach] = {
            p.node.index: reach(trace, p.y, self.stream) for p in self.all
        }
        layers: dict[str, set[int]] = {}
        for p in self.all:
            layers.setdefault(p.source.parameter, set()).add(p.layer)
        self.banks = {
            name for name, used in layers.items() if len(used) > 1 and len(self.shapes[name]) > 2
        }
        self.solved: dict[tuple[str, int], list[tuple[str, Tensor | None]]] = {}

    def matrices(self) -> None:
        """Give every projection its role."""
        for p in self.all:
            like = self._place(p), p.features
            pieces = self.solved.get(like) if p.source.parameter not in self.banks else None
            if pieces is None:
                pieces = self.solved[like] = list(self._pieces(p))
            for role, chosen in pieces:
                self._add(p, role, chosen)
                self._watch_mlp(p, role)

    def _place(self, p: Projection) -> str:
        """The name of a matrix within its block, which its like in other blocks have too."""
        path = self.blocks[p.layer].path if p.layer >= 0 else ""
        return p.source.parameter.removeprefix(f"{path}.")

    def _add(self, p: Projection, role: str, chosen: Tensor | None) -> None:
        name = p.source.parameter
        shape = self.shapes[name]
        rows = p.rows(shape, bank=name in self.banks)
        if chosen is not None:
            rows = rows.view(-1, p.features)[:, chosen].flatten()
        total = shape.numel() // (shape[-2] if p.transposed else shape[-1])
        whole = None if len(rows) == total else rows
        layer = p.layer
        if len(shape) < 3 or name not in self.banks:  # a block that runs several times is one
            layer = next((u.layer for u in self.uses.get(name, ())), layer)
        use = Use(role, layer, whole, p.transposed)
        known = self.uses.setdefault(name, [])
        if not any(same(use, other) for other in known):
            known.append(use)

    def _pieces(self, p: Projection) -> Iterable[tuple[str, Tensor | None]]:
        """Roles of a projection, each with its output features (``None`` for all)."""
        if role := self.given.role(p.source.parameter):
            return [(role, None)]
        way = self.reach[p.node.index]
        roles = sorted({self.slots[v] for _, v in way.linear if v in self.slots}, key="qkv".index)
        if len(roles) == 1:
            return [(roles[0], None)]
        if roles:
            return self._split_attention(p, way, roles)
        if self._is_gated_pair(p, way):
            return self._split_gate(p, way)
        return [(self._single(p, way), None)]

    def _single(self, p: Projection, way: Reach) -> str:
        """The role of a projection with one."""
        before = {node.index for node, _ in back(self.trace, p.x, self.stream.__contains__)}
        if way.output and not way.stream and p.layer < 0:
            return "lm_head"
        if any(self.trace.nodes[i].outputs[0] in self.mixed for i in before):
            return "attn_proj" if way.stream else "other"
        if p.layer < 0:
            return "other"
        if way.through(CHOOSING):
            return "router"
        following = {i for i, _ in way.products if i in self.by_node}
        own = before & self.by_node.keys()
        if way.stream:
            if own:
                return "mlp_proj"
            return "router" if way.through(NONLINEAR) else "other"
        if not following:
            return "other"
        makes = {self.slots[v] for i in following for _, v in self.reach[i].linear
                 if v in self.slots}  # fmt: skip
        if makes:  # the first of two matrices, as of latent attention
            return makes.pop() if len(makes) == 1 else "other"
        return "gate" if self._opens(way) else "fc"

    def _opens(self, way: Reach) -> bool:
        """Whether a projection is activated and then multiplied with another one."""
        bent = self._bent(way)
        for node in way.through(frozenset({"mul"})):
            active = self.trace.active(node)
            if len(active) == 2 and any(v in bent for v in active):
                other = [v for v in active if v not in way.values]
                if any(self._of_projection(v) for v in other):
                    return True
        return False

    def _of_projection(self, value: int) -> bool:
        """Whether a value comes from a matrix with several output features; no router's weight."""
        return any(
            node.index in self.by_node
            and self.by_node[node.index].features > 1
            and not self.reach[node.index].through(CHOOSING)
            for node, _ in back(self.trace, value, self.stream.__contains__)
        )

    def _bent(self, way: Reach) -> set[int]:
        """Values behind an activation."""
        found: set[int] = set()
        for node in way.nodes:
            if node.name in NONLINEAR or found.intersection(node.inputs):
                found.update(node.outputs)
        return found

    def _is_gated_pair(self, p: Projection, way: Reach) -> bool:
        """Whether one half of the output features may gate the other."""
        if p.layer < 0 or way.stream or p.features % 2:
            return False
        return bool(way.through(frozenset({"glu"}))) or any(
            node.name == "mul" and len([v for v in self.trace.active(node) if v in way.values]) == 2
            for node in way.nodes
        )

    def _split_gate(self, p: Projection, way: Reach) -> list[tuple[str, Tensor | None]]:
        """Gate and value of a fused pair: the two factors of a product hold other channels."""
        found = labels(self.trace, p.y, way)
        bent = self._bent(way)
        for node in way.nodes:
            if node.name == "glu" and node.inputs[0] in found:
                one, two = found[node.inputs[0]].chunk(2, int(node.args[1]))
                return [("gate", channels(two)), ("fc", channels(one))]
            pair = [v for v in self.trace.active(node) if v in found]
            if node.name != "mul" or len(pair) != 2:
                continue
            one, two = (channels(found[v]) for v in pair)
            if not set(one.tolist()) & set(two.tolist()):
                first = pair[0] in bent
                return [("gate", one if first else two), ("fc", two if first else one)]
        return [(self._single(p, way), None)]

    def _split_attention(
        self, p: Projection, way: Reach, roles: list[str]
    ) -> list[tuple[str, Tensor | None]]:
        found = labels(self.trace, p.y, way)
        own: dict[str, Tensor] = {}
        for role in roles:
            values = [v for _, v in way.linear if self.slots.get(v) == role and v in found]
            if any(len(channels(found[v])) for v in values):
                own[role] = torch.unique(torch.cat([channels(found[v]) for v in values]))
        lost = [role for role in roles if role not in own]
        if lost:  # an index whose values are unknown on the device meta: the usual order q, k, v
            free = torch.ones(p.features, dtype=torch.bool)
            for taken in own.values():
                free[taken] = False
            own |= zip(lost, free.nonzero().squeeze(1).chunk(len(lost)), strict=False)
        return [(r, None if len(own[r]) == p.features else own[r]) for r in roles if r in own]

    def _watch_mlp(self, p: Projection, role: str) -> None:
        """Note where the activation of an MLP is, for measuring."""
        if role == "mlp_proj":
            self.found.hidden.append((p.layer, p.x))
        elif role == "gate" or (role == "fc" and not self._gated(p)):
            way = self.reach[p.node.index]
            first = next((node for node in way.nodes if self._bends(node, way)), None)
            if first is not None:  # of x·(1 + …x²) the x, which was made before the rest
                taken = min(self._unscaled(v, p.y) for v in self.trace.active(first))
                if (p.layer, taken) not in self.found.preact:
                    self.found.preact.append((p.layer, taken))

    def _bends(self, node: Node, way: Reach) -> bool:
        """Whether an operator is not linear in a projection's result."""
        own = [v for v in self.trace.active(node) if v in way.values]
        return node.name in NONLINEAR or (node.name == "mul" and len(own) == 2)

    def _gated(self, p: Projection) -> bool:
        return any(use.role == "gate" for use in self.uses.get(p.source.parameter, ()))

    def _unscaled(self, value: int, made: int) -> int:
        """The value before constant factors, such as the 1/√2 of an erf."""
        while value != made:
            node = self.trace.maker(value)
            if node is None or node.name not in ("mul", "div") or len(node.inputs) > 1:
                return value
            value = node.inputs[0]
        return value
