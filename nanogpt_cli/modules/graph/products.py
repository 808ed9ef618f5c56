"""Products of activations with parameters: the linear layers of a module as they run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_cli.modules.graph.attention_ops import factors
from nanogpt_cli.modules.graph.blocks import Block, layer_at
from nanogpt_cli.modules.graph.trace import Node, Source, Trace


@dataclass(frozen=True)
class Projection:
    """One use of a matrix.

    Attributes:
        node: the product.
        source: where in its parameter the matrix lies.
        layer: the block that runs it.
        x, y: the activations that it takes and makes.
        transposed: whether the parameter is stored as (in, out).
        features: number of output features.
    """

    node: Node
    source: Source
    layer: int
    x: int
    y: int
    transposed: bool
    features: int

    def rows(self, shape: torch.Size, *, bank: bool) -> Tensor:
        """The rows of ``Part.of`` that this use takes.

        Args:
            shape: the parameter's.
            bank: whether a stack of matrices holds those of several blocks; otherwise the members
                of a stack are experts, and a use of one stands for all.
        """
        per_matrix = shape[-1] if self.transposed else shape[-2] if len(shape) > 1 else 1
        offset = self.source.offset
        size = shape[-2] * shape[-1] if len(shape) > 1 else shape[-1]
        inside, member = offset % size, offset // size
        first = inside if self.transposed else inside // shape[-1]
        own = torch.arange(first, min(first + self.features, per_matrix))
        if len(shape) < 3:
            return own
        members = torch.arange(shape[:-2].numel()) if not bank else torch.tensor([member])
        return (members[:, None] * per_matrix + own).flatten()


def projections(trace: Trace, blocks: list[Block]) -> Iterator[Projection]:
    """Every product of an activation with a parameter, in order."""
    for node in trace.nodes:
        pair = factors(node) if node.product and node.key is not None else None
        if pair is None or not node.outputs:
            continue
        for place, (weight, x) in enumerate((pair, pair[::-1])):
            source = trace.values[weight].source
            if source is None or not trace.values[x].active:
                continue
            shape, stride = trace.values[weight].shape, source.stride
            if len(stride) < 2 or len(shape) < 2:
                stride = (1, shape[0])  # a copy whose layout is unknown: as ``nn.Linear`` has it
            # (…, in, out) as the second factor, (…, out, in) as the first.
            inward, outward = (-1, -2) if place == 0 else (-2, -1)
            transposed = stride[inward] != 1 and stride[outward] == 1 and shape[outward] > 1
            yield Projection(
                node, source, layer_at(blocks, node.index), x, node.outputs[0],
                transposed, shape[outward] if len(shape) > 1 else 1,
            )  # fmt: skip
            break
