"""What a recipe will need, without running it: memory by component, work, time and disk.

Weights, gradients and moments are counted to the byte, activations as ``activations.py`` does.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nanogpt_cli import places
from nanogpt_cli.machine import parts
from nanogpt_cli.machine.device import Device
from nanogpt_cli.machine.memory import available_bytes
from nanogpt_cli.model import loss
from nanogpt_cli.model.accounting import training_flops
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.model.parameters import is_block_matrix
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.training import evaluate, spec
from nanogpt_cli.training.forecasts.activations import activation_bytes
from nanogpt_cli.training.optim import takes_muon

# Memory of the program before a model exists. CPU: resident, measured with torch 2.13 on Linux.
# The others are estimates of a driver's context, not measured.
PROGRAM_BYTES = {"cpu": 345 << 20, "cuda": 500 << 20, "mps": 300 << 20}
# Bytes of events.jsonl a step, with statistics at the default budget; measured.
_LOG_BYTES = 400


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. All but ``peak`` are components; not all exist at the same time.

    Attributes:
        weights, gradients, moments: of the model, or of this process's slice of it; an average
            of the weights counts as a moment.
        activations: what the forward pass of one micro-batch keeps for the backward pass.
        backward: temporaries at the turn to the backward pass: of the logits or of one MLP.
        update: temporaries of the optimizer and of statistics.
        evaluation: logits, log-probabilities and activations of one evaluation batch.
        program: interpreter and libraries.
        peak: largest sum at any moment.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    backward: int
    update: int
    evaluation: int
    program: int
    peak: int


@dataclass(frozen=True)
class Forecast:
    """Everything ``nanogpt plan`` says of a recipe; ``seconds`` is ``None`` without a speed."""

    parameters: int
    flops_per_token: float
    tokens_per_step: int
    tokens: int
    epochs: float
    flops: float
    memory: Memory
    available: int
    largest_micro_batch: int
    checkpoint_bytes: int
    disk_bytes: int
    disk_free: int
    flops_per_second: float | None
    seconds: float | None

    @property
    def fits(self) -> bool:
        """Whether memory and disk suffice."""
        return self.memory.peak <= self.available and self.disk_bytes <= self.disk_free

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"fits": self.fits}


def forecast(
    recipe: Recipe,
    vocab_size: int,
    train_tokens: int,
    device: Device,
    *,
    processes: int = 1,
    flops_per_second: float | None = None,
    folder: Path = Path(),
    available: int = 0,
) -> Forecast:
    """What a recipe will need on this machine.

    Args:
        recipe: what to run.
        vocab_size: of its tokenizer.
        train_tokens: of its training split.
        device: where.
        processes: that share each step.
        flops_per_second: of one process, see ``speed``.
        folder: where the run will be written.
        available: bytes of the device's memory to plan for; 0: what is free now.
    """
    recipe = recipe.for_processes(processes)
    model = shape(spec.model_config(recipe, vocab_size))
    needed = memory(recipe, model.config, device, processes=processes)
    free = available or available_bytes(device)
    tokens = recipe.tokens_per_step * recipe.train.max_steps
    flops = training_flops(model.config) * tokens
    weights, _, moments = _state_bytes(recipe, model)
    checkpoint = weights + moments
    kept = recipe.train.keep + 2  # the best one, and the one being written
    if recipe.train.keep_every:
        kept += recipe.train.max_steps // recipe.train.keep_every
    rate = flops_per_second * processes if flops_per_second else None
    return Forecast(
        parameters=model.n_parameters(),
        flops_per_token=training_flops(model.config),
        tokens_per_step=recipe.tokens_per_step,
        tokens=tokens,
        epochs=tokens / max(1, train_tokens),
        flops=flops,
        memory=needed,
        available=free,
        largest_micro_batch=largest_micro_batch(recipe, model.config, device, free, processes),
        checkpoint_bytes=checkpoint,
        disk_bytes=checkpoint * kept + _LOG_BYTES * recipe.train.max_steps,
        disk_free=shutil.disk_usage(places.nearest_existing(folder)).free,
        flops_per_second=rate,
        seconds=flops / rate if rate else None,
    )


def memory(
    recipe: Recipe,
    config: GPTConfig,
    device: Device,
    *,
    micro_batch: int = 0,
    processes: int = 1,
) -> Memory:
    """Memory of one process.

    The peak is the largest of four moments: the turn from the forward to the backward pass, its
    end, the update, and an evaluation. With a single micro-batch gradients appear as activations
    go. Of its pieces, as many as there are parts are computed side by side, each with its copy of
    the gradients, and a sum of each round of additions may wait (``machine/parts.py``).
    """
    size = micro_batch or recipe.train.batch_size
    model = shape(config)
    split = processes if recipe.train.parallel == "fsdp" else 1
    weights, gradients, moments = (n // split for n in _state_bytes(recipe, model))
    T = config.block_size
    n_parts = parts.choose(recipe, device, alone=processes == 1)
    pieces = n_parts
    if n_parts > 1:
        pieces = parts.pieces(n_parts, size, training_flops(config) * T)
    at_once = min(size, n_parts * math.ceil(size / pieces))  # sequences
    activations = activation_bytes(config, at_once, device)
    backward = _backward_bytes(config, at_once * T, device, n_parts)
    evaluation = _evaluation_bytes(model, device)
    update = _update_bytes(recipe, model)
    program = PROGRAM_BYTES[device.device.type]
    accumulating = recipe.tokens_per_step > size * T * processes
    turn = activations + backward + (gradients if accumulating or processes > 1 else 0)
    waiting = math.ceil(math.log2(pieces / n_parts)) + int(accumulating and n_parts > 1)
    end = gradients * (n_parts + waiting)
    peak = program + weights + moments + max(turn, end, gradients + update, evaluation)
    return Memory(
        weights, gradients, moments, activations, backward, update, evaluation, program, peak
    )


def shape(config: GPTConfig) -> GPT:
    """A model without values."""
    with torch.device("meta"):
        return GPT(config)


def _state_bytes(recipe: Recipe, model: GPT) -> tuple[int, int, int]:
    """(weights, gradients, moments) of the whole model, float32."""
    muon = sum(p.numel() for n, p in model.named_parameters() if takes_muon(recipe.optim, n, p))
    every = model.n_parameters()
    average = every if recipe.optim.ema else 0
    return 4 * every, 4 * every, 4 * (2 * (every - muon) + muon + average)


def _backward_bytes(config: GPTConfig, positions: int, device: Device, n_parts: int) -> int:
    """The largest temporaries that exist before activations go: of the head, or around one MLP."""
    mlp = positions * (config.n_embd + 2 * config.hidden_size)
    return 4 * max(_head_values(config, positions, device, n_parts), mlp)


def _head_values(config: GPTConfig, positions: int, device: Device, n_parts: int) -> int:
    """Values of logits, and of what is computed from them, at one time (``model/loss.py``)."""
    each = -(-positions // n_parts)
    at_once = loss.logits_at_once(device.device, each, config.vocab_size)
    in_pieces = at_once < each * config.vocab_size
    return n_parts * at_once * (3 if in_pieces else 1)  # logits, probabilities, their difference


def _evaluation_bytes(model: GPT, device: Device) -> int:
    """Temporaries of one evaluation batch."""
    config = model.config
    positions = evaluate.default_batch(model) * config.block_size
    n_parts = parts.side_by_side(device)
    each = -(-positions // n_parts)
    logits = n_parts * loss.logits_at_once(device.device, each, config.vocab_size)
    return 4 * (2 * logits + positions * (config.n_embd + 2 * config.hidden_size))


def _update_bytes(recipe: Recipe, model: GPT) -> int:
    """Temporaries between backward pass and next step."""
    named = dict(model.named_parameters())
    matrices = sum(p.numel() for n, p in named.items() if is_block_matrix(n, p.shape))
    watched = matrices if recipe.stats.budget or recipe.stats.every else 0
    stacks: dict[tuple[int, ...], int] = {}
    for name, p in named.items():
        if takes_muon(recipe.optim, name, p):
            shape = tuple(sorted(p.shape))
            stacks[shape] = stacks.get(shape, 0) + p.numel()
    # Muon holds all updates, and of its largest stack the input, two iterates and a product.
    return 4 * (watched + sum(stacks.values()) + 4 * max(stacks.values(), default=0))


def largest_micro_batch(
    recipe: Recipe, config: GPTConfig, device: Device, available: int, processes: int = 1
) -> int:
    """Sequences of the largest micro-batch that fits and divides the step; 0 if none does."""
    slots = recipe.tokens_per_step // config.block_size // processes
    small = [size for size in range(1, math.isqrt(slots) + 1) if slots % size == 0]
    fits = [
        size
        for size in {*small, *(slots // size for size in small)}
        if memory(recipe, config, device, micro_batch=size, processes=processes).peak <= available
    ]
    return max(fits, default=0)


def speed(
    recipe: Recipe,
    config: GPTConfig,
    device: Device,
    *,
    seconds: float = 3.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Training FLOP/s of this machine: forward and backward passes of the recipe's micro-batch."""
    model = GPT(config).to(device.device).train()
    ids = torch.zeros(
        recipe.train.batch_size, config.block_size, dtype=torch.int64, device=device.device
    )

    def once() -> None:
        with device.autocast():
            found = model.loss(ids, ids)
        found.backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    once()  # the first pass allocates
    device.synchronize()
    started, passes = clock(), 0
    while passes < 2 or clock() - started < seconds:
        once()
        device.synchronize()
        passes += 1
    return training_flops(model.config) * ids.numel() * passes / (clock() - started)
