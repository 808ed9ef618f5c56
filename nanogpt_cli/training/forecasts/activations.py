"""What autograd keeps for the backward pass of one micro-batch, in bytes.

It is counted by tracing (``saved_tensors_hooks`` on tensors without memory,
``machine/shapes.py``), so the count follows the model's code.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nanogpt_cli.machine import shapes
from nanogpt_cli.machine.device import Device
from nanogpt_cli.model import loss
from nanogpt_cli.model.dropout import Noise
from nanogpt_cli.model.gpt import GPT, GPTConfig


def activation_bytes(config: GPTConfig, micro_batch: int, device: Device) -> int:
    """Bytes autograd keeps for the backward pass of one micro-batch, weights not counted.

    They grow with each block as much as with the second.
    """
    if config.n_layer < 3:
        return _of_sequences(config, micro_batch, device)
    one, two = (_of_sequences(replace(config, n_layer=n), micro_batch, device) for n in (1, 2))
    return two + (config.n_layer - 2) * (two - one)


def _of_sequences(config: GPTConfig, micro_batch: int, device: Device) -> int:
    """``activation_bytes`` of all blocks that ``config`` has.

    Where the head works in pieces they grow with each sequence alike, from the second on: of one
    alone, what is kept twice of several may be one tensor. Two of the smallest such sizes are
    traced, since tracing takes as long as there are pieces.
    """
    T, V = config.block_size, config.vocab_size
    plain = loss.logits_at_once(device.device, micro_batch * T, V) // (T * V)
    smallest = max(2, plain + 1)
    if micro_batch <= smallest + 1:
        return _traced(config, micro_batch, device)
    first, second = (_traced(config, smallest + n, device) for n in (0, 1))
    return first + (micro_batch - smallest) * (second - first)


class _Counted(Noise):
    """Noise of the same size, without values."""

    def keep(
        self,
        shape: Sequence[int],
        p: float,  # noqa: ARG002
        sequences: slice = slice(None),  # noqa: ARG002
    ) -> Tensor:
        """As ``Noise.keep``."""
        return torch.empty(tuple(shape), dtype=torch.bfloat16)


@functools.lru_cache(maxsize=64)
def _traced(config: GPTConfig, micro_batch: int, device: Device) -> int:
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with shapes.alone(device):
        model = GPT(config).train()
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        ids = torch.zeros(micro_batch, config.block_size, dtype=torch.int64)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        noise = _Counted(range(micro_batch)) if device.eager_cpu else None
        with hooks, shapes.autocast(device):
            model.loss(ids, ids, noise)
        return sum(
            tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own
        )
