"""One optimizer step: micro-batches, backward, clipping, update. No files, no events."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanogpt_cli.core import batches
from nanogpt_cli.core.device import Device
from nanogpt_cli.core.evaluate import Tokens
from nanogpt_cli.core.model import GPT
from nanogpt_cli.core.optim import Optimizers


@dataclass(frozen=True)
class Measured:
    """Loss and gradient of one step, before any update.

    Attributes:
        loss: mean over all tokens of the step, in nats.
        grad_norm: global gradient norm before clipping.
        clipped: whether it is above the limit.
    """

    loss: float
    grad_norm: float
    clipped: bool

    @property
    def finite(self) -> bool:
        """Whether an update may be made with it."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def stream_seed(*keys: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. dropout of step 7 under the run's seed."""
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Stepper:
    """Computes the steps of a run: ``measure``, then ``apply`` or ``discard``.

    Args:
        model: the raw module, in training mode.
        forward: the module that is called, perhaps a compiled wrapper of ``model``.
        optimizers: of the raw module's parameters.
        windows: the order of the data; its ``batch`` counts all sequences of a step.
        tokens: the training split.
        device: where and how to compute.
        micro_batch: sequences at once.
        grad_clip: largest gradient norm; 0 for none.
    """

    def __init__(
        self,
        model: GPT,
        forward: nn.Module,
        optimizers: Optimizers,
        windows: batches.Windows,
        tokens: Tokens,
        device: Device,
        *,
        micro_batch: int,
        grad_clip: float,
    ) -> None:
        self.model = model
        self.forward = forward
        self.optimizers = optimizers
        self.windows = windows
        self.tokens = tokens
        self.device = device
        self.micro_batch = micro_batch
        self.grad_clip = grad_clip
        self.scaler = torch.amp.GradScaler(device.device.type, enabled=device.precision == "fp16")
        self._named = list(model.named_parameters())
        self._norms: list[Tensor] = []
        self._norm = torch.zeros(())

    def batch(self, step: int, slots: range) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some slots of a step, each (len(slots), T)."""
        T = self.windows.block_size
        ids = torch.from_numpy(batches.fetch(self.tokens, self.windows.offsets(step, slots), T))
        if self.device.device.type == "cuda":
            ids = ids.pin_memory().to(self.device.device, non_blocking=True)
        else:
            ids = ids.to(self.device.device)
        return ids[:, :-1], ids[:, 1:]

    def measure(self, step: int) -> Measured:
        """Accumulate the gradient of ``step`` (from 0) and look at it."""
        loss = self._accumulate(step)
        for part in self.optimizers.parts:
            self.scaler.unscale_(part)
        self._norms = list(torch._foreach_norm(self._grads()))
        self._norm = torch.linalg.vector_norm(torch.stack(self._norms).float())
        loss_value, norm = torch.stack([loss, self._norm]).tolist()  # the step's only transfer
        return Measured(loss_value, norm, bool(self.grad_clip) and norm > self.grad_clip)

    def _accumulate(self, step: int) -> Tensor:
        """Backward through every micro-batch; the mean loss, still on the device."""
        total = torch.zeros((), device=self.device.device)
        batch = self.windows.batch
        for start in range(0, batch, self.micro_batch):
            slots = range(start, min(start + self.micro_batch, batch))
            x, y = self.batch(step, slots)
            with self._dropout_stream(step, start), self.device.autocast():
                _, loss = self.forward(x, y)
            loss = loss * (len(slots) / batch)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    @contextlib.contextmanager
    def _dropout_stream(self, step: int, start: int) -> Iterator[None]:
        """Dropout noise as a function of (seed, step, slot), whatever ran before."""
        if not self.model.config.dropout:
            yield
            return
        device = self.device.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(stream_seed(self.windows.seed, "dropout", step, start))
            yield

    def apply(self, measured: Measured) -> None:
        """Clip and update; the gradients are gone afterwards."""
        if measured.clipped:
            torch._foreach_mul_(self._grads(), self.grad_clip / (measured.grad_norm + 1e-6))
        for part in self.optimizers.parts:
            self.scaler.step(part)
        self.scaler.update()
        self.optimizers.zero_grad()

    def _grads(self) -> list[Tensor]:
        grads = [p.grad for _, p in self._named if p.grad is not None]
        assert len(grads) == len(self._named), "a parameter took no part in the loss"
        return grads

    def discard(self) -> None:
        """Forget the gradients of ``measure`` without an update."""
        if self.scaler.is_enabled():
            self.scaler.update()
        self.optimizers.zero_grad()

    def grad_norms(self) -> dict[str, Tensor]:
        """Gradient norm of each parameter in the last ``measure``, before clipping."""
        return {name: norm for (name, _), norm in zip(self._named, self._norms, strict=True)}

    def broken_gradients(self) -> list[str]:
        """Parameters whose gradient was not finite in the last ``measure``."""
        return [n for n, norm in self.grad_norms().items() if not math.isfinite(float(norm))]
