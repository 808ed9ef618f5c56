"""Loss over a whole split: one pass, each token predicted once, summed in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt_cli.core.device import Device
from nanogpt_cli.core.model import GPT

Tokens = npt.NDArray[np.integer]

# Positions whose logits are held at once: bounds memory for large vocabularies.
_LOGITS = 1 << 25


@dataclass(frozen=True)
class Result:
    """Loss of a split.

    Attributes:
        loss: mean negative log-likelihood in nats per token.
        tokens: predicted tokens.
        by_position: mean loss at each position of the context, (block_size,).
    """

    loss: float
    tokens: int
    by_position: npt.NDArray[np.float64]

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite when it overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """The loss per byte of text, comparable between tokenizers."""
        return self.loss / math.log(2) / bytes_per_token


def windows(tokens: Tokens, block_size: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Side-by-side windows as (inputs, targets), (≤ batch, T) int64; the last may be shorter.

    Every token but the first is a target exactly once.
    """
    n_full = (len(tokens) - 1) // block_size
    for start in range(0, n_full, batch):
        stop = min(start + batch, n_full)
        piece = tokens[start * block_size : stop * block_size + 1].astype(np.int64)
        ids = torch.from_numpy(piece)
        yield ids[:-1].view(-1, block_size), ids[1:].view(-1, block_size)
    if (len(tokens) - 1) % block_size:
        ids = torch.from_numpy(tokens[n_full * block_size :].astype(np.int64))
        yield ids[None, :-1], ids[None, 1:]


def default_batch(model: GPT) -> int:
    """Windows evaluated at once: bounded by the logits' memory."""
    return max(1, min(64, _LOGITS // (model.config.block_size * model.config.vocab_size)))


@torch.no_grad()
def evaluate(
    model: GPT,
    tokens: Tokens,
    device: Device,
    *,
    batch: int | None = None,
    max_batches: int | None = None,
) -> Result:
    """Mean loss over ``tokens`` (at least 2), without dropout.

    The result does not depend on ``batch`` beyond rounding of single losses. ``max_batches``
    looks at the beginning only (for rehearsals).
    """
    block_size = model.config.block_size
    sums = torch.zeros(block_size, dtype=torch.float64)
    counts = torch.zeros(block_size, dtype=torch.float64)
    training = model.training
    model.eval()
    for number, (x, y) in enumerate(windows(tokens, block_size, batch or default_batch(model))):
        if number == max_batches:
            break
        x, y = x.to(device.device), y.to(device.device)
        with device.autocast():
            logits, _ = model(x)
        losses = F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction="none")
        sums[: y.shape[1]] += losses.view(y.shape).cpu().double().sum(0)
        counts[: y.shape[1]] += y.shape[0]
    model.train(training)
    total = int(counts.sum())
    by_position = (sums / counts.clamp(min=1)).numpy()
    return Result(float(sums.sum() / total), total, by_position)
