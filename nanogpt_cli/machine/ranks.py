"""What can go wrong between the processes of a job, in words: too few GPUs, or one that is gone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from nanogpt_cli import host
from nanogpt_cli.errors import UserError
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.machine.joining import patience
from nanogpt_cli.user_input import whole_from_environment

# Parts of what gloo, NCCL and the store say when the other end of a connection is gone.
_GONE = ("onnection", "peer", "Broken pipe", "ncclRemoteError", "remote process", "remote server")
_LATE = ("imed out", "timeout")
_LONGEST = 160
# Processes without a GPU that may share a computer; a slip such as 99 would fill its memory.
_MOST_ON_A_FEW_CORES, _MOST_PER_CORE = 8, 4
_PLACE = re.compile(r"^\[\S+:\d+\] ")  # gloo begins with the place in its sources


def on_this_machine(processes: int) -> int:
    """How many of a job's processes run on this machine; all, unless a launcher says otherwise."""
    return whole_from_environment("LOCAL_WORLD_SIZE", processes)


def check_devices(wanted: str, here: int, fewer: Callable[[int], str] | None = None) -> None:
    """Refuse processes that cannot each have a device of their own.

    Args:
        wanted: ``train.device``.
        here: processes on this machine.
        fewer: the command that starts as many as there are GPUs; ``torchrun`` by default.

    Raises:
        UserError: there are fewer GPUs than processes, or all would compute on one; or there are
            far more processes than cores.
    """
    if here == 1:
        return
    kind, _, index = wanted.partition(":")
    if kind == "cuda" and index:
        raise UserError(
            f"train.device = {wanted!r} names one GPU for {here} processes",
            'set train.device = "cuda", which gives each process its own; the environment variable '
            "CUDA_VISIBLE_DEVICES chooses among the GPUs",
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind in ("auto", "cuda") and 0 < gpus < here:
        start = fewer(gpus) if fewer else f"torchrun --nproc-per-node {gpus}"
        raise UserError(
            f"{here} processes need a GPU each, and this machine has {gpus}",
            f"{start}, or train on its CPUs: --device cpu",
        )
    if kind == "mps" or (kind == "auto" and not gpus and torch.backends.mps.is_available()):
        raise UserError(
            f"{here} processes cannot share this machine's GPU, of the type mps",
            "start one process, or train on the CPUs: --device cpu",
        )
    cores = host.usable_cores()
    most = max(_MOST_ON_A_FEW_CORES, _MOST_PER_CORE * cores)
    if (kind == "cpu" or not gpus) and here > most:
        raise UserError(
            f"{here} processes would mostly wait for one another on {cores} cores, and each takes "
            "the memory of PyTorch and of the model",
            f"start {cores}, one a core; more than {most} are refused",
        )


@contextlib.contextmanager
def readable_losses(group: Group, hint: Callable[[], str]) -> Iterator[None]:
    """Turn an error of a collective operation into one line: another process is gone, or silent.

    Args:
        group: the processes.
        hint: says what to do then.

    Raises:
        UserError: another process is gone or does not answer, or the GPUs cannot exchange data.
    """
    try:
        yield
    except RuntimeError as error:
        message, own_hint = _in_words(error) if group.joined else ("", "")
        if not message:
            raise
        raise UserError(f"rank {group.rank}: {message}", own_hint or hint()) from error


def _in_words(error: RuntimeError) -> tuple[str, str]:
    """What an error of a collective operation means, and a hint of its own; "" for other errors."""
    text = str(error)
    of_messages = isinstance(error, dist.DistError) or "gloo" in text
    if isinstance(error, torch.OutOfMemoryError) or not of_messages:
        return "", ""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    said = next((line for line in lines if line.startswith("nccl")), lines[0])
    reason = _PLACE.sub("", said).split(". ")[0][:_LONGEST]
    if any(word in text for word in _LATE):
        limit = f"{patience().total_seconds():.0f} s"
        return f"another process of this job has not answered for {limit} ({reason})", ""
    if isinstance(error, dist.DistNetworkError) or any(word in text for word in _GONE):
        return f"another process of this job is gone ({reason})", ""
    if isinstance(error, dist.DistBackendError):
        hint = "NCCL_DEBUG=WARN in the environment makes NCCL say why"
        return f"the GPUs cannot exchange data ({reason})", hint
    return "", ""
