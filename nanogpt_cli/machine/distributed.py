"""One run on several processes: ranks, the messages between them, and how the model is split.

Every rank runs the same trainer in lockstep; only rank 0 writes. There are two ways to share the
work:

* DDP: each rank holds the whole model; gradients are averaged after the last micro-batch.
* FSDP2 (``fully_shard``): each rank holds a slice of every parameter, gradient and moment; a
  block's weights are gathered while it computes. Each rank writes its rows into one shared file of
  whole tensors (``training/checkpoints/tensor_files.py``) and reads its rows from it, so a run can
  be resumed with a different number of processes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanogpt_cli import files
from nanogpt_cli.errors import UserError
from nanogpt_cli.machine.device import Device

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# Gradients that DDP sends at once, in MiB; PyTorch's default.
BUCKET_MB = 25.0


@dataclass(frozen=True)
class Group:
    """The processes of a run; by default a single one, for which every method is a no-op.

    Attributes:
        rank: rank of this process, from 0.
        world: number of processes.
        local_rank: rank of this process among those on its machine.
        joined: whether collective operations connect the processes. A single one joins itself only
            on request, see ``joining.alone``.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    joined: bool = False

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, the process that writes files and messages."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Broadcast rank 0's JSON value to every rank. Every rank must call it."""
        if not self.joined:
            return value
        payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = torch.tensor(len(payload))
        dist.broadcast(size, 0)
        data = payload if self.leads else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, 0)
        return json.loads(bytes(data.tolist()))

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.joined:
            dist.all_reduce(values)
        return values

    def meet(self) -> None:
        """Wait until every rank has called this (a barrier)."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on some rank. Every rank must call it."""
        return bool(self.sum(torch.tensor(int(flag))).item()) if self.joined else flag

    def own_slots(self, slots: int) -> range:
        """This rank's share of the slots of a step.

        Raises:
            UserError: they cannot be divided evenly.
        """
        if slots % self.world:
            raise UserError(
                f"{slots} sequences per step cannot be divided evenly among {self.world} processes",
                "set train.tokens_per_step to a multiple of "
                "model.block_size * train.batch_size * processes",
            )
        each = slots // self.world
        return range(self.rank * each, (self.rank + 1) * each)


def shard(
    model: nn.Module, blocks: Iterable[nn.Module], device: Device, *, methods: Iterable[str] = ()
) -> None:
    """Split every parameter of ``model`` over all ranks (FSDP2), in place.

    On GPUs in bf16 the blocks' weights are gathered in bf16, as which their products take them
    anyway (and the gains of LayerNorm, which a single process does not round); gradients are summed
    in float32. Embeddings, the last LayerNorm and the head stay in float32.

    Args:
        model: the model to split.
        blocks: its submodules whose weights are gathered one at a time while the model computes.
        device: the device that the ranks compute on.
        methods: methods of ``model`` that compute with its weights, besides ``forward``.

    Raises:
        UserError: the number format does not work with FSDP2.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    if device.precision == "fp16":
        raise UserError(
            'train.parallel = "fsdp" does not work with train.precision = "fp16"',
            'use precision = "bf16", or parallel = "ddp"',
        )
    mesh = init_device_mesh(device.device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    # A CPU's layer_norm takes no gains of another format than its input.
    if device.precision == "bf16" and device.device.type == "cuda":
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    for method in methods:
        register_fsdp_forward_method(model, method)


def replicate(forward: nn.Module, device: Device) -> nn.Module:
    """Wrap ``forward`` so that gradients are averaged over ranks (DDP).

    Its parameters must already have the same values on every rank.
    """
    from torch.nn.parallel import DistributedDataParallel

    ids = [device.device] if device.device.type == "cuda" else None
    return DistributedDataParallel(
        forward, device_ids=ids, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB
    )


@contextlib.contextmanager
def reducing(forward: Any, model: Any, last: bool) -> Iterator[None]:
    """Context that averages gradients over ranks in the last micro-batch's backward pass only."""
    if is_sharded(model):
        model.set_requires_gradient_sync(last)
        yield
    elif hasattr(forward, "no_sync") and not last:  # DDP
        with forward.no_sync():
            yield
    else:
        yield


def is_sharded(model: nn.Module) -> bool:
    """Whether ``shard`` has split the model."""
    return hasattr(model, "set_requires_gradient_sync")


def forget_gathered(model: Any) -> None:
    """Make FSDP2 gather again what an evaluation left whole, after a change of weights in place."""
    if hasattr(model, "reshard"):
        model.reshard()


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether ``tensor`` is a ``DTensor``, checked without importing that class (a second)."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This rank's slice of a tensor, or the tensor itself if it is not split."""
    if not is_split(tensor):
        return tensor
    mine: Tensor = tensor.to_local()
    return mine


def rows(tensor: Tensor) -> tuple[int, Tensor]:
    """Index of this rank's first row, and its rows; all rows if the tensor is not split."""
    mine = local(tensor)
    if not is_split(tensor) or not tensor.placements[0].is_shard():
        return 0, mine
    here = all_rows(tensor)[tensor.device_mesh.get_local_rank()]
    assert len(mine) == len(here), "the tensor is not split into equal rows"
    return here.start, mine


def all_rows(tensor: Tensor) -> list[range]:
    """The rows that each rank holds; of a tensor that is not split, one range with all of them."""
    n = len(tensor)
    if not is_split(tensor) or not tensor.placements[0].is_shard():
        return [range(n)]
    world = tensor.device_mesh.size()
    each = -(-n // world)
    return [range(min(r * each, n), min((r + 1) * each, n)) for r in range(world)]


def whole(tensors: Mapping[str, Tensor], group: Group) -> dict[str, Tensor]:
    """Gather split tensors one by one on rank 0's CPU; other ranks get an empty dict.

    Every rank must call it.
    """
    found = {}
    for name, tensor in tensors.items():
        full = _joined(tensor) if is_split(tensor) else tensor
        if group.leads:
            found[name] = full.cpu()
    return found


@contextlib.contextmanager
def new_folder(target: Path, group: Group, *, replace: bool = False) -> Iterator[Path]:
    """Let rank 0 create a folder with ``files.new_folder`` and every rank write into it."""
    if not group.leads:
        yield Path(group.share(None))
        return
    with files.new_folder(target, replace=replace) as folder:
        group.share(str(folder.absolute()))
        yield folder


def _joined(tensor: DTensor) -> Tensor:
    full: Tensor = tensor.full_tensor()
    return full


def _split(mine: Tensor, reference: DTensor) -> DTensor:
    """A ``DTensor`` of which this rank holds the slice ``mine``, split like ``reference``."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        mine,
        reference.device_mesh,
        reference.placements,
        shape=reference.shape,
        stride=reference.stride(),
        run_check=False,
    )


def like(full: Tensor, reference: Tensor) -> Tensor:
    """``full``, split and placed like ``reference``."""
    if not is_split(reference):
        return full.to(reference.device)
    first, mine = rows(reference)
    return _split(full[first : first + len(mine)].to(reference.device), reference)


def norms(tensors: Sequence[Tensor], group: Group) -> Tensor:
    """Frobenius norms, float32 (len(tensors),), with one collective operation for all of them.

    Args:
        tensors: whole tensors, or this rank's slices of them.
        group: the ranks that hold the other slices; ``Group()`` for whole tensors.
    """
    found = torch.stack(torch._foreach_norm(list(tensors))).float()
    return group.sum(found.square()).sqrt() if group.joined else found
