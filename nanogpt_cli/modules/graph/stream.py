"""Find the residual stream of a module by watching the operators of one forward pass.

Nothing is read from names: the stream is followed from the lookup of the token ids through
additions to the last one, an attention is a softmax between two products of activations, and a
block is what repeats. ``watch`` takes any module whose call maps token ids to logits or to the last
state of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from nanogpt_cli.errors import UserError
from nanogpt_cli.modules.anatomy import Anatomy, Write
from nanogpt_cli.modules.graph.attention_ops import Attention, attentions
from nanogpt_cli.modules.graph.blocks import Block, find_blocks, layer_at
from nanogpt_cli.modules.graph.branches import Branches
from nanogpt_cli.modules.graph.override import Override
from nanogpt_cli.modules.graph.passes import HINT, Forward, call, first_run, unwrapped
from nanogpt_cli.modules.graph.roles import Found, find_roles
from nanogpt_cli.modules.graph.trace import Key, Node, Trace
from nanogpt_cli.modules.graph.trunk import Addition, Trunk, find_trunk
from nanogpt_cli.modules.graph.vectors import normalised


@dataclass(frozen=True)
class Spot:
    """One number to take while another pass runs.

    Attributes:
        what: which: ``stream``, ``attn``, ``mlp``, ``scores``, ``preact``, ``hidden``, ``token`` or
            ``position``.
        layer: the block; of ``stream`` its place in ``Signals.stream_rms``.
        take: which result of the node; -1 - n for its argument n.
        factor: what multiplies the value when it is added to the stream.
    """

    what: str
    layer: int
    take: int = 0
    factor: float = 1.0


@dataclass(frozen=True)
class Watched(Anatomy):
    """An anatomy, and where ``measure`` finds its numbers in another pass.

    Attributes:
        spots: what to take at each node, with the name of its operator.
        forward: calls the module on token ids.
        entries: which of the tensors in a block's arguments is the stream, by block.
        exit: which of the tensors in the last block's result is.
        head: whether the module's result is logits.
        normed: whether blocks carry on what a norm makes of the stream (post-norm).
        steps: what happens to the stream, in order: (block, ``norm`` or a kind of addition). A kind
            follows ``normed`` if the branch is normalised before it is added, and ``parallel`` if
            it reads what the addition before it reads.
    """

    spots: dict[Key, tuple[str, tuple[Spot, ...]]] = field(
        default_factory=dict, compare=False, repr=False
    )
    forward: Forward = field(default=call, compare=False, repr=False)
    entries: tuple[int, ...] = ()
    exit: int = 0
    head: bool = True
    normed: bool = False
    steps: tuple[tuple[int, str], ...] = ()


def watch(
    module: nn.Module,
    ids: Tensor,
    forward: Forward | None = None,
    override: Override | None = None,
) -> Watched:
    """Find the stream, blocks and roles of a module.

    Args:
        module: with values, or with parameters on the device ``meta`` if its course does not
            depend on them, as that of a loop over chosen experts does.
        ids: (B, T) int64 token ids, never on ``meta``; few are enough, T ≥ 2.
        forward: calls the module on ids; needed where ``module(ids)`` does not do.
        override: corrections of what is found.

    Raises:
        UserError: the pass fails, nothing in it adds to a stream, or a correction matches nothing.
    """
    module = unwrapped(module)
    given = (override or Override()).check(module)
    trace, called = first_run(module, ids, forward)
    trunk = find_trunk(trace, list(lookups(trace)))
    if trunk is None:
        raise UserError("no residual stream: nothing is added to the token embedding", HINT)
    heads = attentions(trace)
    branches = Branches(trace, trunk, heads, given)
    computed = [a for a in trunk.additions if branches.computed(a)]
    if not computed:
        raise UserError("no residual stream: only embeddings are added to each other", HINT)
    attends = [branches.kind(a) in ("attn", "both") for a in computed]
    blocks = find_blocks(trace, trunk, computed, attends, given.blocks)
    roles = find_roles(module, trace, trunk, heads, blocks, given)
    return Watched(
        width=trace.values[trunk.seed].shape[-1],
        blocks=tuple(block.path for block in blocks),
        writes=tuple(_writes(trace, trunk, branches, blocks)),
        norms=tuple(_norm_path(module, node) for node, _ in trunk.norms),
        parts=roles.parts,
        tied=roles.tied,
        spots=_spots(trace, trunk, branches, blocks, heads, roles),
        forward=called,
        entries=tuple(_place(trace, b, b.enters, "inputs") for b in blocks),
        exit=_place(trace, blocks[-1], blocks[-1].leaves, "outputs"),
        steps=_steps(trace, trunk, branches, blocks),
        normed=any(
            node.outputs[0] in trunk.values and layer_at(blocks, node.index) >= 0
            for node, _ in trunk.norms
        ),
        head=roles.tied or any(part.role == "lm_head" for part in roles.parts),
    )


def _steps(
    trace: Trace, trunk: Trunk, branches: Branches, blocks: list[Block]
) -> tuple[tuple[int, str], ...]:
    found = [(node.index, "norm") for node, _ in trunk.norms]
    before: Addition | None = None
    for addition in trunk.additions:
        index, word = addition.node.index, branches.kind(addition)
        if not branches.computed(addition):
            found.append((index, word))
            continue
        if normalised(trace, addition.added, with_gain=True):
            found.append((index, f"normed {word}"))
        elif (
            before
            and layer_at(blocks, before.node.index) == layer_at(blocks, index)
            and (branches.parallel(addition, before))
        ):
            found.append((index, f"parallel {word}"))
        else:
            found.append((index, word))
        before = addition
    return tuple((layer_at(blocks, index), word) for index, word in sorted(found))


def _norm_path(module: nn.Module, node: Node) -> str:
    """Path of the module that normalises; empty for a function in a larger module."""
    return "" if any(True for _ in module.get_submodule(node.frame).children()) else node.frame


def _place(trace: Trace, block: Block, value: int, side: str) -> int:
    """Which of the tensors in a block's arguments or results a value is."""
    return list(getattr(trace.calls[block.call], side)).index(value) if block.path else -1


def _writes(trace: Trace, trunk: Trunk, branches: Branches, blocks: list[Block]) -> Iterator[Write]:
    yield Write(-1, "embed", trace.nodes[trace.values[trunk.seed].node].frame)
    for addition in trunk.additions:
        layer = layer_at(blocks, addition.node.index)
        yield Write(layer, branches.kind(addition), branches.origin(addition))


def _spots(
    trace: Trace,
    trunk: Trunk,
    branches: Branches,
    blocks: list[Block],
    heads: list[Attention],
    roles: Found,
) -> dict[Key, tuple[str, tuple[Spot, ...]]]:
    """Where each number of an inspection is made."""
    found: dict[Key, tuple[str, tuple[Spot, ...]]] = {}

    def put(node: Node | None, spot: Spot) -> None:
        if node is not None and node.key is not None:
            found[node.key] = node.name, (*found.get(node.key, ("", ()))[1], spot)

    def made(what: str, layer: int, value: int, factor: float = 1.0) -> None:
        node = trace.maker(value)
        if node is not None:
            put(node, Spot(what, layer, node.outputs.index(value), factor))

    for layer, block in enumerate(blocks):
        made("stream", layer, block.enters)
    made("stream", len(blocks), blocks[-1].leaves)
    for addition in trunk.additions:
        layer = layer_at(blocks, addition.node.index)
        if branches.computed(addition):
            for term in branches.terms(addition):
                made(term.kind, layer, term.value, term.factor)
        elif branches.kind(addition) == "embed" and not trace.values[addition.added].active:
            made("token", 0, addition.carried)
            place = addition.node.inputs.index(addition.added)
            put(addition.node, Spot("position", 0, -1 - place))
    for one in heads:
        put(one.softmax, Spot("scores", layer_at(blocks, one.softmax.index)))
    for layer, value in roles.preact:
        made("preact", layer, value)
    for layer, value in roles.hidden:
        made("hidden", layer, value)
    return found


def lookups(trace: Trace) -> Iterator[Node]:
    """Nodes that look token ids up in a table, in order."""
    for node in trace.nodes:
        if node.name in ("embedding", "index", "index_select") and node.key is not None:
            table, *_ = node.inputs
            if trace.values[table].source is not None:
                yield node
