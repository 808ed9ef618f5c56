"""Work that ranks share out among each other, and the messages that bring the results together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

# Its name since PyTorch 2.13, and before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def deal(costs: Sequence[float], world: int) -> list[int]:
    """The rank that does each piece of work, so that all have about the same to do.

    The costliest piece that is left goes to the rank with the least so far. No rank ends with more
    than an even share and one piece, and all find the same without a message.
    """
    loads = [0.0] * world
    owners = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):  # stable
        owners[piece] = loads.index(min(loads))
        loads[owners[piece]] += costs[piece]
    return owners


def collect(
    mine: Sequence[Tensor], owners: Sequence[int], shapes: Sequence[tuple[int, ...]], like: Tensor
) -> list[Tensor]:
    """Tensors of which each rank holds some, all of them on every rank, by one ``all_gather``.

    Args:
        mine: those of this rank, in order.
        owners: rank of each tensor.
        shapes: of each tensor.
        like: has their dtype and device.
    """
    world = dist.get_world_size()
    sizes = [torch.Size(shape).numel() for shape in shapes]
    loads = [sum(n for n, o in zip(sizes, owners, strict=True) if o == r) for r in range(world)]
    sent = like.new_zeros(max(loads))
    if mine:
        torch.cat([tensor.reshape(-1) for tensor in mine], out=sent[: loads[dist.get_rank()]])
    found = like.new_empty(world, len(sent))
    _all_gather(found.view(-1), sent)
    start = [0] * world
    tensors = []
    for owner, size, shape in zip(owners, sizes, shapes, strict=True):
        tensors.append(found[owner, start[owner] : start[owner] + size].view(shape))
        start[owner] += size
    return tensors


def swap(
    outgoing: Sequence[Sequence[Tensor]], incoming: Sequence[Sequence[int]], like: Tensor
) -> list[Tensor]:
    """Send some tensors to each rank, by one ``all_to_all``.

    Args:
        outgoing: the tensors for each rank.
        incoming: sizes of the tensors that come from each rank.
        like: has their dtype and device.

    Returns:
        The tensors that came, flat, in the order of ``incoming``.
    """
    pieces = [tensor.reshape(-1) for some in outgoing for tensor in some]
    sent = torch.cat([like.new_empty(0), *pieces])
    found = sent.new_empty(sum(map(sum, incoming)))
    dist.all_to_all_single(
        found,
        sent,
        [sum(sizes) for sizes in incoming],
        [sum(tensor.numel() for tensor in some) for some in outgoing],
    )
    return list(torch.split(found, [size for sizes in incoming for size in sizes]))
