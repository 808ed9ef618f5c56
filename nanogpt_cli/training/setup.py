"""From a recipe's sections to the objects a run is made of."""

from __future__ import annotations

import os
import platform
from dataclasses import replace

import torch
from torch import Tensor, nn

from nanogpt_cli import places, schemes
from nanogpt_cli.errors import UserError
from nanogpt_cli.init import drawing
from nanogpt_cli.init.expected import expected_stats
from nanogpt_cli.machine import distributed, memory, parts
from nanogpt_cli.machine.device import Device
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.model.accounting import training_flops
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.run import events
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training import batches
from nanogpt_cli.training.batches import Windows
from nanogpt_cli.training.optim import Optimizers
from nanogpt_cli.training.stepper import Stepper
from nanogpt_cli.version import __version__

_PROBE_SEQUENCES = 2


def scheme_of(recipe: Recipe) -> schemes.Scheme:
    """The initialisation scheme a recipe names or defines."""
    if recipe.model.init == "custom":
        return schemes.parse_custom(recipe.init)
    return schemes.get(recipe.model.init)


def model_config(recipe: Recipe, vocab_size: int) -> GPTConfig:
    """The model a recipe describes, for a tokenizer of ``vocab_size`` tokens.

    Raises:
        UserError: the recipe's own vocab_size is too small for the tokenizer.
    """
    section = recipe.model
    if section.vocab_size and section.vocab_size < vocab_size:
        raise UserError(
            f"model.vocab_size = {section.vocab_size} is smaller than the tokenizer's {vocab_size}",
            "leave it out, or pad it upwards (50304 for gpt2)",
        )
    plain = GPTConfig(
        n_layer=section.n_layer,
        n_head=section.n_head,
        n_embd=section.n_embd,
        block_size=section.block_size,
        vocab_size=section.vocab_size or vocab_size,
        dropout=section.dropout,
        bias=section.bias,
        activation=section.activation,
        tied=section.tied,
    )
    return drawing.configure(plain, scheme_of(recipe))


def check_data(recipe: Recipe, data: TokenData) -> None:
    """Refuse data that is too short for the recipe.

    Raises:
        UserError: a split has fewer tokens than one window needs.
    """
    T = recipe.model.block_size
    for name, tokens, needed in (("train", data.train, T + 1), ("val", data.val, 2)):
        if len(tokens) < needed:
            raise UserError(
                f"{data.folder}: the {name} split has {len(tokens)} tokens, "
                f"model.block_size = {T} needs at least {needed}",
                "give it more text, or a smaller model.block_size",
            )


def assemble(
    recipe: Recipe,
    data: TokenData,
    device: Device,
    start_from: GPT | None = None,
    group: Group = Group(),  # noqa: B008 - frozen
) -> Stepper:
    """Model, optimizers and data order of a run.

    Args:
        recipe: what to do.
        data: prepared tokens.
        device: where.
        start_from: weights to begin with; its architecture must be the recipe's.
        group: the processes that share the work.
    """
    config, scheme = model_config(recipe, data.vocab_size), scheme_of(recipe)
    if device.device.type == "cpu":
        memory.keep_freed()
    model = _starting_model(start_from, config) or drawing.build(config, scheme, recipe.run.seed)
    model = model.to(device.device).train()
    windows = Windows(
        seed=recipe.run.seed,
        n_tokens=len(data.train),
        block_size=config.block_size,
        batch=recipe.tokens_per_step // config.block_size,
        order=recipe.data.order,
    )
    group.part(windows.batch)
    if group.world > 1 and recipe.train.parallel == "fsdp":
        distributed.shard(model, model.transformer.h, device)
    forward, device = _compiled(model, recipe, device)
    if group.world > 1 and recipe.train.parallel == "ddp":
        forward = distributed.replicate(forward, device)
    optimizers = Optimizers(
        model,
        recipe.optim,
        scheme,
        max_steps=recipe.train.max_steps,
        muon_dtype=device.muon_dtype,
    )
    return Stepper(
        model,
        forward,
        optimizers,
        windows,
        data.train,
        device,
        micro_batch=recipe.train.batch_size,
        grad_clip=recipe.optim.grad_clip,
        ema=recipe.optim.ema,
        group=group,
        n_parts=parts.choose(recipe, device, group.world),
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


def _starting_model(model: GPT | None, config: GPTConfig) -> GPT | None:
    """A copy of ``model`` with the recipe's dropout; its other settings must agree.

    Raises:
        UserError: they do not; each difference is named.
    """
    if model is None:
        return None
    wanted = replace(config, multipliers=model.config.multipliers)
    found = replace(model.config, dropout=config.dropout)
    if found != wanted:
        theirs, ours = found.to_dict(), wanted.to_dict()
        differing = ", ".join(
            f"{k} {theirs[k]} (recipe: {v})" for k, v in ours.items() if theirs[k] != v
        )
        raise UserError(
            f"the weights to start from have another shape: {differing}",
            "set these keys in [model] to what the weights have",
        )
    with torch.device("meta"):
        copy = GPT(found)
    copy.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    copy.tie()
    return copy.requires_grad_(True)


def probe_ids(recipe: Recipe, data: TokenData) -> Tensor:
    """The fixed training sequences whose activations are watched, (2, T)."""
    T = recipe.model.block_size
    fixed = Windows(0, len(data.train), T, _PROBE_SEQUENCES, "random")
    offsets = fixed.offsets(0, range(_PROBE_SEQUENCES))
    return torch.from_numpy(batches.fetch(data.train, offsets, T)[:, :-1])


def describe(
    recipe: Recipe, data: TokenData, stepper: Stepper, *, name: str, step: int, scratch: bool
) -> events.RunStarted:
    """The event that opens a run's log.

    Args:
        scratch: the run began with the scheme's values, so theory knows what to expect of them.
    """
    model, device = stepper.model, stepper.device
    expected = {}
    if scratch and stepper.group.leads:
        expected = expected_stats(model.config, scheme_of(recipe), probe_ids(recipe, data))
    return events.RunStarted(
        name=name,
        step=step,
        max_steps=recipe.train.max_steps,
        tokens_per_step=recipe.tokens_per_step,
        parameters=model.n_parameters(),
        device=device.name,
        precision=device.precision,
        host=platform.node(),
        pid=os.getpid(),
        version=__version__,
        vocab_size=data.vocab_size,
        n_layer=model.config.n_layer,
        flops_per_token=training_flops(model.config),
        peak_flops=device.peak_flops,
        recipe=recipe.model_dump(mode="json"),
        expected=expected,
        notes=device.notes,
    )
