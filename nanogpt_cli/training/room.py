"""Refusing a run that needs more memory than the machine has, before it begins."""

from __future__ import annotations

from nanogpt_cli.machine.device import Device
from nanogpt_cli.machine.memory import available_bytes
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.training.spec import RunSpec


def check_memory(spec: RunSpec) -> None:
    """Refuse a run that needs more memory than there is.

    Raises:
        UserError: with the forecast and what would fit.
    """
    config, recipe = spec.config, spec.recipe
    if _is_ample(config, recipe.train.batch_size * config.block_size, spec.device):
        return
    from nanogpt_cli.training import plan  # tracing imports a second's worth of PyTorch

    plan.check(recipe, config, spec.device, spec.group.world)


def _is_ample(config: GPTConfig, tokens: int, device: Device) -> bool:
    """Whether training needs so little of the free memory that nothing has to be forecast.

    Args:
        config: of the model.
        tokens: of a micro-batch.
        device: where.
    """
    C, V, L = config.n_embd, config.vocab_size, config.n_layer
    parameters = (2 * V + config.block_size) * C + L * 16 * C * C
    # Several times what forward and backward pass keep: 100 values a channel, 10 a logit.
    values = 8 * parameters + tokens * (L * (100 * C + 4 * config.n_head * config.block_size))
    return 4 * (values + 10 * tokens * V) < available_bytes(device) // 2
