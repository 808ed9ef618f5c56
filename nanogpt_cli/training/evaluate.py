"""Loss over a whole split: one pass, each token predicted once, summed in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanogpt_cli.machine import distributed, parts
from nanogpt_cli.machine.device import Device
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.model.gpt import GPT

Tokens = npt.NDArray[np.integer]
# Maps ids and targets (B, T) to the loss of each target (B, T).
Losses = Callable[[Tensor, Tensor], Tensor]

# Values of the widest activation, the MLP's, that are held at once.
_VALUES = 1 << 27


@dataclass(frozen=True)
class Result:
    """Loss of a split.

    Attributes:
        loss: mean negative log-likelihood in nats per token.
        tokens: predicted tokens.
        by_position: mean loss at each position of the context, (block_size,).
        std_error: of ``loss``, from the scatter of the means of whole windows, which are taken as
            independent; ``None`` for fewer than two windows.
    """

    loss: float
    tokens: int
    by_position: npt.NDArray[np.float64]
    std_error: float | None = None

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite when it overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """The loss per byte of text, comparable between tokenizers."""
        return self.loss / math.log(2) / bytes_per_token


def spans(n_tokens: int, block_size: int, batch: int) -> list[tuple[int, int]]:
    """Where each batch of side-by-side windows starts and what its last target is.

    Every token but the first is a target exactly once; a shorter last window is a batch of its own.
    """
    whole = (n_tokens - 1) // block_size * block_size
    step = batch * block_size
    found = [(start, min(start + step, whole)) for start in range(0, whole, step)]
    return [*found, (whole, n_tokens - 1)] if whole < n_tokens - 1 else found


def windows(tokens: Tokens, span: tuple[int, int], block_size: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one span, each (≤ batch, ≤ block_size) int64."""
    start, stop = span
    ids = torch.from_numpy(tokens[start : stop + 1].astype(np.int64))
    width = min(block_size, stop - start)
    return ids[:-1].view(-1, width), ids[1:].view(-1, width)


def default_batch(model: GPT) -> int:
    """Windows evaluated at once, bounded by the memory of activations."""
    config = model.config
    return max(1, min(64, _VALUES // (config.block_size * config.hidden_size)))


def evaluate(
    model: GPT,
    tokens: Tokens,
    device: Device,
    *,
    batch: int | None = None,
    max_batches: int | None = None,
    group: Group = Group(),  # noqa: B008 - frozen
    losses: Losses | None = None,
) -> Result:
    """Mean loss over ``tokens`` (at least 2), without dropout.

    The result does not depend on ``batch`` or the number of processes beyond the rounding of
    single losses. ``max_batches`` looks at the beginning only (for rehearsals).
    """
    going = passes(
        model, tokens, device, batch=batch, max_batches=max_batches, group=group, losses=losses
    )
    while True:
        try:
            next(going)
        except StopIteration as done:
            result: Result = done.value
            return result


def passes(
    model: GPT,
    tokens: Tokens,
    device: Device,
    *,
    batch: int | None = None,
    max_batches: int | None = None,
    group: Group = Group(),  # noqa: B008 - frozen
    losses: Losses | None = None,
) -> Generator[float, None, Result]:
    """``evaluate`` in pieces: yields the share done after each batch, returns the result.

    ``losses`` is the compiled form of ``model.token_losses``; it computes the full batches, which
    have one shape.
    """
    T = model.config.block_size
    wide = torch.float32 if device.device.type == "mps" else torch.float64
    sums = torch.zeros(T, dtype=wide, device=device.device)
    counts = torch.zeros(T, dtype=torch.float64)
    spread = torch.zeros(3, dtype=wide, device=device.device)  # of window means: n, sum, squares
    batch = batch or default_batch(model)
    todo = spans(len(tokens), T, batch)[:max_batches]
    for first in range(0, len(todo), group.world):
        # A rank without a batch repeats the first one for nothing: split models need every rank.
        mine = first + group.rank
        x, y = windows(tokens, todo[mine % len(todo)], T)
        compiled = losses if x.shape == (batch, T) else None
        found = _losses(model, device.place(x), device.place(y), device, compiled)
        if mine < len(todo):
            sums[: y.shape[1]] += found.to(wide).sum(0)
            counts[: y.shape[1]] += y.shape[0]
            if y.shape[1] == T:
                means = found.to(wide).mean(1)
                n = means.new_full((), len(means))  # filled there: a copied number would wait
                spread += torch.stack([n, means.sum(), means @ means])
        yield min(1.0, (first + group.world) / len(todo))
    sums, counts = group.sum(sums).cpu().double(), group.sum(counts)
    total = int(counts.sum())
    by_position = (sums / counts.clamp(min=1)).numpy()
    error = _std_error(*group.sum(spread).tolist())
    return Result(float(sums.sum() / total), total, by_position, error)


def _std_error(windows: float, total: float, squares: float) -> float | None:
    """Of a mean of so many values with this sum and sum of squares."""
    if windows < 2:
        return None
    variance = max(0.0, squares - total * total / windows) / (windows - 1)
    return math.sqrt(variance / windows)


def rehearse(model: GPT, device: Device, losses: Losses) -> None:
    """Evaluate one full batch of nothing, which compiles ``losses``."""
    shape = default_batch(model), model.config.block_size
    ids = torch.zeros(shape, dtype=torch.int64, device=device.device)
    _losses(model, ids, ids, device, losses)


def _losses(
    model: GPT, x: Tensor, y: Tensor, device: Device, compiled: Losses | None = None
) -> Tensor:
    """Negative log-likelihood of each target, float32, the shape of ``y``."""
    training = model.training
    model.eval()

    @torch.no_grad()  # of the thread that calls it
    def work(mine: range) -> Tensor:
        ids, targets = x[mine.start : mine.stop], y[mine.start : mine.stop]
        with device.autocast():
            return (compiled or model.token_losses)(ids, targets)

    whole = any(distributed.is_split(p) for p in model.parameters())
    found = parts.run(work, range(len(x)), 1 if whole else parts.side_by_side(device))
    model.train(training)
    return torch.cat(found)
