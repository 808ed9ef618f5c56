"""Too little memory: refused before a run begins, and put in words where it shows later."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from nanogpt_cli import units
from nanogpt_cli.errors import UserError
from nanogpt_cli.machine.device import Device
from nanogpt_cli.machine.memory import available_bytes, ran_out, reachable_bytes
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.training.spec import RunSpec


def check_memory(spec: RunSpec) -> None:
    """Refuse a run that needs more memory than there is.

    Raises:
        UserError: with the forecast and what would fit.
    """
    config, recipe, processes = spec.config, spec.recipe, spec.group.world
    if _is_ample(config, recipe.train.batch_size * config.block_size, spec.device):
        return
    from nanogpt_cli.training.forecasts import plan  # tracing imports a second's worth of PyTorch

    room = available_bytes(spec.device, with_swap=True)
    free = f"of memory, {units.decimal_size(room)} are free"
    # To trace a thousand layers takes ten seconds, so what they train is counted first.
    one, two = (plan.shape(replace(config, n_layer=n)).n_parameters() for n in (1, 2))
    parameters = one + (config.n_layer - 1) * (two - one)
    least = 8 * parameters // (processes if recipe.train.parallel == "fsdp" else 1)
    if least > room:
        raise UserError(
            "the run does not fit: its weights and gradients alone need "
            f"{units.decimal_size(least)} {free}",
            "use a smaller model",
        )
    needed = plan.memory(recipe, config, spec.device, processes=processes).peak
    if needed > room:
        largest = plan.largest_micro_batch(recipe, config, spec.device, room, processes)
        raise UserError(
            f"the run does not fit: it needs about {units.decimal_size(needed)} {free}",
            f"set train.batch_size = {largest}" if largest else "use a smaller model or block_size",
        )


def _is_ample(config: GPTConfig, tokens: int, device: Device) -> bool:
    """Whether training needs so little of the free memory that nothing has to be forecast.

    Args:
        config: of the model.
        tokens: of a micro-batch.
        device: where.
    """
    C, V, L = config.n_embd, config.vocab_size, config.n_layer
    # Beyond an MLP and heads that the figures below stand for.
    wide = max(0, config.hidden_size - 4 * C) + max(0, config.q_size - C)
    parameters = (2 * V + config.block_size) * C + L * (16 * C + 3 * wide) * C
    # Several times what forward and backward pass keep: 100 values a channel, 10 a logit.
    a_layer = 100 * C + 10 * wide + 4 * config.n_head * config.block_size
    values = 8 * parameters + tokens * L * a_layer
    return 4 * (values + 10 * tokens * V) < available_bytes(device) // 2


@contextlib.contextmanager
def readable_memory(spec: RunSpec) -> Iterator[None]:
    """Turn too little memory for the block into a line that says what would fit.

    Raises:
        UserError: there was too little.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise _does_not_fit(spec) from error


def _does_not_fit(spec: RunSpec) -> UserError:
    size, group = spec.recipe.train.batch_size, spec.group
    rank = f"rank {group.rank}: " if group.joined else ""
    sequences = "sequence" if size == 1 else "sequences"
    reachable = reachable_bytes(spec.device) / 1e9
    fitting = _smaller(spec)
    smaller = "use a smaller model or block_size"
    if group.joined and spec.recipe.train.parallel == "ddp":
        smaller += ', or train.parallel = "fsdp"'
    return UserError(
        f"{rank}a micro-batch of {size} {sequences} does not fit into the memory of "
        f"{spec.device.name}, of which this process can have {reachable:.1f} GB",
        f"set train.batch_size = {fitting}" if fitting else smaller,
    )


def _smaller(spec: RunSpec) -> int:
    """The largest smaller micro-batch that is forecast to fit; 0 if none is.

    The forecast had let the present one pass, so it is at most half of that.
    """
    from nanogpt_cli.training.forecasts import plan

    recipe, world = spec.recipe, spec.group.world
    half = recipe.train.batch_size // 2
    room = reachable_bytes(spec.device)
    found = plan.largest_micro_batch(recipe, spec.config, spec.device, room, world)
    each = recipe.tokens_per_step // spec.config.block_size // world
    return next((size for size in range(min(found, half), 0, -1) if each % size == 0), 0)
