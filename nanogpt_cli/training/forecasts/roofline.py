"""How long a step takes on a GPU that is not there: an estimate by the roofline model.

Each kernel (``kernels.py``) takes as long as its arithmetic or its memory traffic, whichever is
longer (Williams, Waterman and Patterson 2009), at a share of what the data sheet promises. Not
counted: launching kernels, waiting for the host, evaluations, statistics, samples and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from nanogpt_cli import schemes
from nanogpt_cli.errors import UserError
from nanogpt_cli.machine import distributed, shapes
from nanogpt_cli.machine.device import Device
from nanogpt_cli.machine.gpus import GPU
from nanogpt_cli.model.accounting import training_flops
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.recipe import Optim, Recipe
from nanogpt_cli.training.forecasts import traffic
from nanogpt_cli.training.forecasts.kernels import Kernel
from nanogpt_cli.training.optim import Optimizers
from nanogpt_cli.training.optimizers.ema import Average


@dataclass(frozen=True)
class Shares:
    """Shares of the data sheet's figures that kernels reach, of products and of attention.

    All are assumed; none was measured with this program. They were chosen so that the speeds come
    out that llm.c reports for GPT-2 of 124M parameters on H100 and A100 (``docs/experiments.md``).
    FlashAttention-2 reaches 0.35 of an H100 (Shah et al. 2024, arXiv:2407.08608) and up to 0.73 of
    an A100 (Dao 2023, arXiv:2307.08691), both with longer contexts and wider heads than GPT-2's.
    """

    product: float
    attention: float


HOPPER: Final = Shares(0.6, 0.2)
OLDER: Final = Shares(0.85, 0.4)
# Of the bandwidth of memory and links; assumed as well.
MEMORY_SHARE: Final = 0.85
LINK_SHARE: Final = 0.8

ALL_REDUCE: Final = "between GPUs"
# In the order of a step.
PARTS: Final = (
    traffic.EMBEDDINGS, traffic.NORMS, traffic.ATTENTION_PRODUCTS, traffic.ATTENTION,
    traffic.MLP_PRODUCTS, traffic.ACTIVATION, traffic.HEAD, traffic.GRADIENT_SUM, ALL_REDUCE,
    traffic.GRADIENT_NORM, traffic.OPTIMIZER,
)  # fmt: skip

# From a model and ids (B, T) to the loss, and to whatever else the backward pass begins with.
Forward = Callable[[GPT, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Part:
    """A part of a step on one GPU.

    Attributes:
        flops: of products.
        bytes: read and written, or sent.
        seconds: estimated.
    """

    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0

    def plus(self, other: Part, times: float = 1.0) -> Part:
        """This and some of another."""
        return Part(
            self.flops + times * other.flops,
            self.bytes + times * other.bytes,
            self.seconds + times * other.seconds,
        )


Parts = dict[str, Part]


def _loss(model: GPT, ids: Tensor) -> tuple[Tensor, ...]:
    return (model.loss(ids, ids),)


@dataclass(frozen=True)
class Estimate:
    """What a recipe takes on GPUs of a kind; every figure is an estimate.

    Attributes:
        gpu: its name.
        gpus: how many share each step.
        parts: of a step on each, by name.
        step_seconds: their sum.
        tokens_per_s: of all GPUs.
        mfu: share of the peak that the FLOPs of ``training_flops`` are.
        gpu_hours: of the whole run, all GPUs added.
    """

    gpu: str
    gpus: int
    parts: Parts
    step_seconds: float
    tokens_per_s: float
    mfu: float
    gpu_hours: float


def estimate(recipe: Recipe, config: GPTConfig, gpu: GPU, *, processes: int = 1) -> Estimate:
    """How long a recipe takes.

    The update counts as one process makes it alone, although ranks share Muon's matrices and FSDP
    splits the rest.

    Args:
        recipe: with ``tokens_per_step`` written out.
        config: of its model.
        gpu: of each process.
        processes: that share each step.

    Raises:
        UserError: the recipe asks for a number format that there are no figures for.
    """
    if recipe.train.precision not in ("auto", "bf16", "fp16"):
        raise UserError(
            f"times on a GPU are estimated for bf16 and fp16, and train.precision is "
            f"{recipe.train.precision!r}",
            "give --set train.precision=bf16",
        )
    size = recipe.train.batch_size
    slots = -(-recipe.tokens_per_step // config.block_size // processes)
    passes = -(-slots // size)  # micro-batches
    one_pass, update = step_parts(config, recipe.optim, gpu, size)
    found: Parts = {}
    for name in PARTS:
        times = passes - 1 if name == traffic.GRADIENT_SUM else passes
        found[name] = update.get(name, Part()).plus(one_pass.get(name, Part()), times)
    if processes > 1:
        split = recipe.train.parallel == "fsdp"
        found[ALL_REDUCE] = _sent(config, gpu, processes, passes, split=split)
    found = {name: part for name, part in found.items() if part.seconds}
    seconds = sum(part.seconds for part in found.values())
    rate = recipe.tokens_per_step / seconds
    return Estimate(
        gpu=gpu.name,
        gpus=processes,
        parts=found,
        step_seconds=seconds,
        tokens_per_s=rate,
        mfu=rate * training_flops(config) / (gpu.peak_flops * processes),
        gpu_hours=seconds * recipe.train.max_steps * processes / 3600,
    )


def _sent(config: GPTConfig, gpu: GPU, processes: int, passes: int, *, split: bool) -> Part:
    """What each GPU sends in a step by rings, counted as if nothing were computed meanwhile.

    DDP adds float32 gradients up once a step: they go round twice. FSDP gathers weights in bf16
    before each forward and backward pass, and scatters sums of float32 gradients.
    """
    with torch.device("meta"):
        n_parameters = GPT(config).n_parameters()
    each = passes * (2 * 2 + 4) if split else 2 * 4
    size = each * n_parameters * (processes - 1) / processes
    return Part(0.0, size, size / (gpu.link * LINK_SHARE))


def step_parts(
    config: GPTConfig,
    optim: Optim,
    gpu: GPU,
    micro_batch: int,
    forward: Forward = _loss,
) -> tuple[Parts, Parts]:
    """The parts of one micro-batch's passes, and of what follows them once a step.

    Blocks are alike, so two are traced, and each further one takes as long as the second.

    Args:
        config: of the model.
        optim: of the recipe.
        gpu: where.
        micro_batch: sequences.
        forward: pass, where it is not that of training.
    """
    depths = (config.n_layer,) if config.n_layer < 3 else (1, 2)
    traced = [
        trace(replace(config, n_layer=n), optim, gpu.device(), micro_batch, forward) for n in depths
    ]
    both = [tuple(_timed(recorder.kernels(), gpu) for recorder in t) for t in traced]
    more = config.n_layer - depths[-1]
    passes, update = (_extended(*(b[i] for b in both), more=more) for i in (0, 1))
    return passes, update


def _extended(*depths: Parts, more: int) -> Parts:
    """The parts with so many more blocks than the last, which has one more than the first."""
    first, last = depths[0], depths[-1]
    return {
        name: part.plus(part.plus(first.get(name, Part()), -1.0), more)
        for name, part in last.items()
    }


def _timed(kernels: list[Kernel], gpu: GPU) -> Parts:
    reached = HOPPER if gpu.hopper else OLDER
    shares = {"product": reached.product, "attention": reached.attention, "memory": 1.0}
    found: Parts = {}
    for kernel in kernels:
        computing = kernel.flops / (gpu.peak_flops * shares[kernel.kind])
        moving = kernel.bytes / (gpu.bandwidth * MEMORY_SHARE)
        part = Part(kernel.flops, kernel.bytes, max(computing, moving))
        found[kernel.part] = found.get(kernel.part, Part()).plus(part)
    return found


def trace(
    config: GPTConfig,
    optim: Optim,
    device: Device,
    micro_batch: int,
    forward: Forward = _loss,
) -> tuple[traffic.Recorder, traffic.Recorder]:
    """What a micro-batch's passes compute, and what follows them once a step."""
    with shapes.alone(device):
        model = GPT(config).train()
        ids = torch.zeros(micro_batch, config.block_size, dtype=torch.int64)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        passes = traffic.Recorder(model)
        with passes, shapes.autocast(device):
            found = forward(model, ids)
        towards = [torch.zeros_like(t) if t.dim() else torch.ones_like(t) for t in found]
        passes.backward = True
        with passes:
            torch.autograd.backward(found, towards)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        passes.keep(*found, *grads)
        return passes, _update(model, optim, grads)


def _update(model: GPT, optim: Optim, grads: Sequence[Tensor]) -> traffic.Recorder:
    """Gradient norm, optimizers and average of the weights, after their first step.

    Muon iterates in bf16, which every GPU that is known by name multiplies.
    """
    scheme = schemes.get("gpt2")  # changes rates alone
    optimizers = Optimizers(model, optim, scheme, max_steps=1, muon_dtype=torch.bfloat16)
    average = Average(model, optim.ema)
    optimizers.step()
    found = traffic.Recorder(model)
    with found:
        found.update(traffic.GRADIENT_NORM)
        distributed.norms(grads, distributed.Group())
        found.update(traffic.OPTIMIZER)
        optimizers.step()
        average.update(1)
    return found
