"""From a recipe's sections to the objects a run is made of."""

from __future__ import annotations

import os
import platform
from dataclasses import replace

import torch
from torch import Tensor, nn

from nanogpt_cli import places
from nanogpt_cli.errors import UserError
from nanogpt_cli.init import drawing
from nanogpt_cli.init.expected import expected_stats
from nanogpt_cli.machine import distributed, memory
from nanogpt_cli.machine.device import Device
from nanogpt_cli.model.accounting import training_flops
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.run import events
from nanogpt_cli.training import batches
from nanogpt_cli.training.batches import Windows
from nanogpt_cli.training.optim import Optimizers
from nanogpt_cli.training.spec import RunSpec
from nanogpt_cli.training.starting import Start, copied
from nanogpt_cli.training.stepper import Stepper
from nanogpt_cli.version import __version__

_PROBE_SEQUENCES = 2


def assemble(spec: RunSpec, start: Start | None = None) -> Stepper:
    """Model, optimizers and data order of a run.

    Args:
        spec: what to do, where, and with which processes.
        start: weights to begin with instead of the scheme's initial values.

    Raises:
        UserError: they do not fit the data's tokenizer or the recipe's model.
    """
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
    if group.world > 1 and recipe.train.parallel == "fsdp":
        distributed.shard(model, model.transformer.h, spec.device)
    forward, device = _compiled(model, recipe, spec.device)
    if group.world > 1 and recipe.train.parallel == "ddp":
        forward = distributed.replicate(forward, device)
    optimizers = Optimizers(
        model,
        recipe.optim,
        spec.scheme,
        max_steps=recipe.train.max_steps,
        muon_dtype=device.muon_dtype,
    )
    return Stepper(
        model,
        forward,
        optimizers,
        windows,
        spec.data.train,
        device,
        micro_batch=recipe.train.batch_size,
        grad_clip=recipe.optim.grad_clip,
        ema=recipe.optim.ema,
        group=group,
        n_parts=spec.n_parts,
    )


def _compiled(model: GPT, recipe: Recipe, device: Device) -> tuple[nn.Module, Device]:
    """The module to call: compiled and tried once, or the model itself with the reason noted.

    Raises:
        UserError: ``train.compile = true`` and it cannot be compiled.
    """
    if not device.compile:
        return model, device
    # PyTorch's own place is the temporary folder, which a restart may clear.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(places.compiled_folder()))
    forward: nn.Module = torch.compile(model)  # type: ignore[assignment]
    shape = (recipe.train.batch_size, recipe.model.block_size)
    ids = torch.zeros(shape, dtype=torch.int64, device=device.device)
    try:
        with device.autocast():
            _, loss = forward(ids, ids)
        loss.backward()
    except Exception as error:  # whatever the compiler stack throws
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        reason = f"{type(error).__name__}: {reason.strip()[:200]}"
        if recipe.train.compile is True:
            raise UserError(
                f"train.compile = true, but compiling failed: {reason}",
                "set train.compile = false",
            ) from error
        note = f"not compiled: {reason}"
        return model, replace(device, compile=False, notes=(*device.notes, note))
    finally:
        model.zero_grad(set_to_none=True)
    return forward, device


def probe_ids(spec: RunSpec) -> Tensor:
    """The fixed training sequences whose activations are watched, (2, T)."""
    T, data = spec.config.block_size, spec.data
    fixed = Windows(0, len(data.train), T, _PROBE_SEQUENCES, "random")
    offsets = fixed.offsets(0, range(_PROBE_SEQUENCES))
    return torch.from_numpy(batches.fetch(data.train, offsets, T)[:, :-1])


def describe(spec: RunSpec, stepper: Stepper, *, step: int, scratch: bool) -> events.RunStarted:
    """The event that opens a run's log.

    Args:
        spec: of the run.
        stepper: made from it.
        step: after which the run goes on.
        scratch: the run began with the scheme's values, so theory knows what to expect of them.
    """
    model, device, recipe = stepper.model, stepper.device, spec.recipe
    expected = {}
    if scratch and spec.group.leads:
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
        recipe=recipe.model_dump(mode="json"),
        expected=expected,
        notes=device.notes,
    )
