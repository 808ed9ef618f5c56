"""From a recipe's sections to the objects a run is made of."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nanogpt_cli.init import drawing
from nanogpt_cli.init.expected import expected_stats
from nanogpt_cli.machine import distributed, memory
from nanogpt_cli.model.accounting import training_flops
from nanogpt_cli.model.dropout import Noise
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.run import events
from nanogpt_cli.training import batches
from nanogpt_cli.training.batches import Windows
from nanogpt_cli.training.compiling import compile_loss
from nanogpt_cli.training.forecasts.room import readable_memory
from nanogpt_cli.training.optim import Optimizers
from nanogpt_cli.training.spec import RunSpec
from nanogpt_cli.training.starting import Start, copied
from nanogpt_cli.training.stepper import Stepper
from nanogpt_cli.version import __version__

_PROBE_SEQUENCES = 2


def assemble(
    spec: RunSpec, start: Start | None = None, *, kind: Callable[..., Stepper] = Stepper
) -> Stepper:
    """Model, optimizers and data order of a run.

    Args:
        spec: what to do, where, and with which processes.
        start: weights to begin with instead of the scheme's initial values.
        kind: makes the stepper of its arguments.

    Raises:
        UserError: they do not fit the data's tokenizer or the recipe's model, or there is too
            little memory.
    """
    with readable_memory(spec):
        return _assemble(spec, start, kind)


def _assemble(spec: RunSpec, start: Start | None, kind: Callable[..., Stepper]) -> Stepper:
    recipe, config, group = spec.recipe, spec.config, spec.group
    if spec.device.device.type == "cpu":
        memory.keep_freed()
    model = copied(start, spec) if start else drawing.build(config, spec.scheme, recipe.run.seed)
    model = model.to(spec.device.device).train()
    windows = Windows(
        seed=recipe.run.seed,
        n_tokens=len(spec.data.train),
        block_size=config.block_size,
        batch=recipe.tokens_per_step // config.block_size,
        order=recipe.data.order,
    )
    group.own_slots(windows.batch)
    if group.joined and recipe.train.parallel == "fsdp":
        methods = ("loss", "token_losses")
        distributed.shard(model, model.blocks, spec.device, methods=methods)
    forward: Callable[..., Tensor] = model.loss
    if group.joined and recipe.train.parallel == "ddp":
        forward = distributed.replicate(_Loss(model), spec.device)
    optimizers = Optimizers(
        model,
        recipe.optim,
        spec.scheme,
        max_steps=recipe.train.max_steps,
        muon_dtype=spec.device.muon_dtype,
        group=group,
    )
    stepper = kind(
        model,
        forward,
        optimizers,
        windows,
        spec.data.train,
        spec.device,
        micro_batch=recipe.train.batch_size,
        grad_clip=recipe.optim.grad_clip,
        ema=recipe.optim.ema,
        group=group,
        n_parts=spec.n_parts,
    )
    compile_loss(stepper, n_val=len(spec.data.val), required=recipe.train.compile is True)
    return stepper


class _Loss(nn.Module):
    """A model's loss as a module of its own, which DDP can wrap."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, idx: Tensor, targets: Tensor, noise: Noise | None = None) -> Tensor:
        """See ``GPT.loss``."""
        return self.model.loss(idx, targets, noise)


def probe_ids(spec: RunSpec) -> Tensor:
    """The fixed training sequences whose activations are watched, (2, T)."""
    T, data = spec.config.block_size, spec.data
    fixed = Windows(0, len(data.train), T, _PROBE_SEQUENCES, "random")
    offsets = fixed.offsets(0, range(_PROBE_SEQUENCES))
    return torch.from_numpy(batches.fetch(data.train, offsets, T)[:, :-1])


def describe(spec: RunSpec, stepper: Stepper, *, step: int, begun_from: str) -> events.RunStarted:
    """The event that opens a run's log.

    Args:
        spec: of the run.
        stepper: made from it.
        step: after which the run goes on.
        begun_from: the trained weights that the run began with; "" for the scheme's values, of
            which theory knows what to expect.
    """
    model, device, recipe = stepper.model, stepper.device, spec.recipe
    expected = {}
    if not begun_from and spec.group.leads:
        expected = expected_stats(model.config, spec.scheme, probe_ids(spec))
    return events.RunStarted(
        name=spec.folder.name if spec.folder else recipe.run.name,
        step=step,
        max_steps=recipe.train.max_steps,
        tokens_per_step=recipe.tokens_per_step,
        parameters=model.n_parameters(),
        device=device.name,
        precision=device.precision,
        host=platform.node(),
        pid=os.getpid(),
        version=__version__,
        vocab_size=spec.data.vocab_size,
        n_layer=model.config.n_layer,
        flops_per_token=training_flops(model.config),
        peak_flops=device.peak_flops,
        processes=spec.group.world,
        begun_from=begun_from,
        recipe=recipe.model_dump(mode="json"),
        expected=expected,
        notes=device.notes,
    )
