"""How the processes of a job find each other, and how long they wait for one another.

They are started by ``torch.distributed.run`` (``nanogpt train --procs N``, or ``torchrun``
directly) and find each other through the environment variables it sets.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from nanogpt_cli.errors import UserError
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.user_input import whole_from_environment

# The variable that sets how many seconds the ranks wait for one that does not answer. By default
# as long as NCCL waits by itself; saving a large model to a slow disk may take minutes.
PATIENCE = "NANOGPT_PATIENCE_S"
_PATIENCE_S = 600
_WHILE_PREPARING = timedelta(days=7)
# The ranks that this process has been: threads of theirs may outlive the group.
past_ranks: list[int] = []


class AbsentError(Exception):
    """Rank 0 could not make what the others waited for, and says why."""


def wanted() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return whole_from_environment("WORLD_SIZE", 1)


def restarted(group: Group) -> bool:
    """Whether the launcher has started these processes again. Every rank must call it.

    The launcher counts a restart only on the machine where a process failed, so the ranks compare.
    """
    return group.any(whole_from_environment("TORCHELASTIC_RESTART_COUNT", 0) > 0)


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """Join the process group of the launcher's processes, if there are several.

    CPU tensors are sent over gloo, GPU tensors over NCCL.

    Raises:
        UserError: the other processes cannot be reached.
    """
    if wanted() == 1:
        with alone() as group:
            yield group
        return
    local_rank = whole_from_environment("LOCAL_RANK", 0)
    if torch.cuda.is_available() and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)  # of too few GPUs ``ranks.check_devices`` complains
    try:
        dist.init_process_group(_backend(), timeout=patience())
    except (dist.DistError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise UserError(
            f"rank {os.environ.get('RANK')}: the other processes cannot be reached ({reason})",
            "after a restart, processes may wait for ones that have ended: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on every machine",
        ) from error
    past_ranks.append(dist.get_rank())
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), local_rank, joined=True)
    finally:
        _leave()


@contextlib.contextmanager
def alone() -> Iterator[Group]:
    """The group of a single process.

    With ``NANOGPT_JOIN_ALONE=1`` it is a process group all the same, so that a machine with one GPU
    runs NCCL, DDP and FSDP2.
    """
    if os.environ.get("NANOGPT_JOIN_ALONE", "0") in ("", "0"):
        yield Group()
        return
    store = torch._C._distributed_c10d.HashStore()
    dist.init_process_group(_backend(), store=store, rank=0, world_size=1)
    try:
        yield Group(joined=True)
    finally:
        _leave()


# Groups that were left. Their destructor would wait for gloo's threads while it holds the
# interpreter's lock, and such a thread may be waiting for that lock to free its last tensor.
_left: list[object] = []


def _leave() -> None:
    """End the process group, but keep its object: what freed it last could wait for ever."""
    _left.append(dist.group.WORLD)
    dist.destroy_process_group()


def patience() -> timedelta:
    """How long the others wait for a process before they end the job."""
    seconds = whole_from_environment(PATIENCE, _PATIENCE_S)
    return timedelta(seconds=max(1, seconds))


def from_first(group: Group, make: Callable[[], Any]) -> Any:
    """The JSON value that rank 0 makes, on every rank. Every rank must call it.

    Making it may take hours, for example while data is prepared: the others wait longer than
    ``patience`` says.

    Raises:
        Exception: on rank 0 whatever ``make`` raises.
        AbsentError: on the other ranks then.
    """
    if not group.joined:
        return make()
    waiting = dist.new_group(backend="gloo", timeout=_WHILE_PREPARING)
    value, made = None, torch.tensor(False)
    try:
        if group.leads:
            value, made = make(), torch.tensor(True)
    finally:
        dist.broadcast(made, 0, group=waiting)
    if not made:
        raise AbsentError
    return group.share(value)


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
