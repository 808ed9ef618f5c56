"""Compiling the loss of a run, and trying it once before the run begins."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import torch

from nanogpt_cli import places
from nanogpt_cli.errors import UserError
from nanogpt_cli.machine import distributed, memory
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.training import evaluate
from nanogpt_cli.training.stepper import Stepper


def compile_loss(stepper: Stepper, *, n_val: int, required: bool) -> None:
    """Compile what the stepper calls and try its first micro-batch; gradients are gone afterwards.

    Shapes are compiled as they are (``dynamic=False``), and the trials have those of the run, so
    neither the first step nor the first evaluation compiles anything again. What DDP has wrapped is
    compiled together with the wrapper, which splits the graph so that gradients are sent while
    others are computed. A model that is split over ranks (FSDP2) is compiled block by block, since
    its weights are gathered between the blocks, and its head together with the loss.

    Args:
        stepper: of the run; if compiling fails, it stays as it is, and its device says why.
        n_val: tokens of the validation split; if they fill no batch, evaluations stay as they are.
        required: whether a failure is an error.

    Raises:
        UserError: it is required and fails.
        RuntimeError: there is too little memory for a micro-batch.
    """
    if not stepper.device.compile:
        return
    # PyTorch's own place is the temporary folder, which a restart may clear.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(places.compiled_folder()))
    model = stepper.model
    evaluations = n_val > evaluate.default_batch(model) * model.config.block_size
    if distributed.is_sharded(model):
        undo = _by_block(model)
    else:
        undo = _whole(stepper, evaluations=evaluations)
    reason = ""
    try:
        stepper.try_micro_batch()
        if evaluations:
            evaluate.rehearse(model, stepper.device, stepper.token_losses)
    except Exception as error:  # whatever the compiler stack throws
        if memory.ran_out(error):
            raise
        reason = _reason(error)
    if not stepper.group.any(bool(reason)):  # the ranks must compute alike
        return
    reason = reason or "it failed on another rank"
    if required:
        raise UserError(
            f"train.compile = true, but compiling failed: {reason}", "set train.compile = false"
        )
    undo()
    note = f"not compiled: {reason}"
    device = stepper.device
    stepper.device = replace(device, compile=False, notes=(*device.notes, note))


def _whole(stepper: Stepper, *, evaluations: bool) -> Callable[[], None]:
    """Compile the loss, of training and of evaluations, as one function each.

    Returns what undoes it.
    """
    plain = stepper.forward
    stepper.forward = torch.compile(plain, dynamic=False)
    if evaluations:
        stepper.token_losses = torch.compile(stepper.model.token_losses, dynamic=False)

    def undo() -> None:
        stepper.forward = plain
        stepper.token_losses = stepper.model.token_losses

    return undo


def _by_block(model: GPT) -> Callable[[], None]:
    """Compile each block, and the head with the loss; returns what undoes it."""
    for block in model.blocks:
        block.compile(dynamic=False)
    model.head_loss = torch.compile(model.head_loss, dynamic=False)  # type: ignore[method-assign]

    def undo() -> None:
        for block in model.blocks:
            block._compiled_call_impl = None  # what Module.compile sets
        del model.head_loss

    return undo


def _reason(error: Exception) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line.strip()[:200]}"
