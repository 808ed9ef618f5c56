"""One optimizer step: micro-batches, backward, clipping, update. No files, no events."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_cli.machine import distributed, parts, threads
from nanogpt_cli.machine.device import Device
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.model import loss as losses
from nanogpt_cli.model.accounting import training_flops
from nanogpt_cli.model.dropout import Noise
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.training import batches, step_times
from nanogpt_cli.training.evaluate import Tokens
from nanogpt_cli.training.optim import Optimizers
from nanogpt_cli.training.optimizers.ema import Average
from nanogpt_cli.training.step_times import StepTimes

# Step and slots of a micro-batch.
_Key = tuple[int, range]
_NOTHING: tuple[_Key, None] = (-1, range(0)), None


@dataclass(frozen=True)
class Measured:
    """Loss and gradient of one step, before any update.

    Attributes:
        index: of the step, from 0.
        lr: AdamW's learning rate.
        loss: mean over all tokens of the step on all ranks, in nats.
        grad_norm: global gradient norm before clipping.
        clipped: whether it is above the limit.
        control: whether some rank wants control between this step and the next.
    """

    index: int
    lr: float
    loss: float
    grad_norm: float
    clipped: bool
    control: bool = False

    @property
    def finite(self) -> bool:
        """Whether an update may be made with it."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def stream_seed(*keys: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. dropout of step 7 under the run's seed."""
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _generator(device: torch.device) -> torch.Generator:
    """The one dropout draws from; ``torch.random.fork_rng`` would cost more than a small model."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.default_generator


class Stepper:
    """Computes the steps of a run: ``measure``, then ``apply`` or ``discard``; or ``step``.

    Args:
        model: the raw module, in training mode.
        forward: the model's loss of (inputs, targets, noise), perhaps compiled or wrapped by DDP.
        optimizers: of the raw module's parameters.
        windows: the order of the data; its ``batch`` counts all sequences of a step.
        tokens: the training split.
        device: where and how to compute.
        micro_batch: sequences at once.
        grad_clip: largest gradient norm; 0 for none.
        ema: decay of the average of the weights; 0 for none.
        group: the processes that share each step.
        n_parts: of a micro-batch, computed side by side (``machine/parts.py``).
    """

    def __init__(
        self,
        model: GPT,
        forward: Callable[..., Tensor],
        optimizers: Optimizers,
        windows: batches.Windows,
        tokens: Tokens,
        device: Device,
        *,
        micro_batch: int,
        grad_clip: float,
        ema: float = 0.0,
        group: Group = Group(),  # noqa: B008 - frozen
        n_parts: int = 1,
    ) -> None:
        self.model = model
        self.forward = forward
        self.token_losses = model.token_losses
        self.optimizers = optimizers
        self.windows = windows
        self.tokens = tokens
        self.device = device
        self.micro_batch = micro_batch
        self.grad_clip = grad_clip
        self.average = Average(model, ema)
        self.group = group
        self.times = StepTimes()
        self.n_parts = n_parts
        self._slot_flops = training_flops(model.config) * windows.block_size
        self.slots = group.own_slots(windows.batch)
        self.scaler = torch.amp.GradScaler(device.device.type, enabled=device.precision == "fp16")
        self._ahead: tuple[_Key, tuple[Tensor, Tensor] | None] = _NOTHING
        self._named = list(model.named_parameters())
        self._norms = torch.zeros(len(self._named))

    def batch(self, step: int, slots: range) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some slots of a step, each (len(slots), T)."""
        (key, found), self._ahead = self._ahead, _NOTHING
        return found if found and key == (step, slots) else self._fetch(step, slots)

    def _fetch(self, step: int, slots: range) -> tuple[Tensor, Tensor]:
        T = self.windows.block_size
        found = batches.fetch(self.tokens, self.windows.offsets(step, slots), T)
        ids = self.device.place(torch.from_numpy(found))
        return ids[:, :-1], ids[:, 1:]

    def _first_slots(self) -> range:
        """Of this rank's first micro-batch."""
        first = self.slots.start
        return range(first, min(first + self.micro_batch, self.slots.stop))

    def _look_ahead(self, step: int) -> None:
        """Have the first micro-batch of ``step`` copied while the GPU is busy with the last one."""
        if self.device.device.type == "cuda":
            slots = self._first_slots()
            with self.times.spending(step_times.DATA):
                self._ahead = (step, slots), self._fetch(step, slots)

    def step(self, index: int, lr_factor: float = 1.0, *, skip: bool = False) -> Measured:
        """Make one whole step; without an update if it is not finite or to be skipped.

        Args:
            index: of the step, from 0.
            lr_factor: the user's learning-rate multiplier.
            skip: make no update.
        """
        measured = self.measure(index, lr_factor)
        if measured.finite and not skip:
            self.apply(measured)
        else:
            self.discard()
        return measured

    def measure(self, index: int, lr_factor: float = 1.0, *, control: bool = False) -> Measured:
        """Set the learning rate of a step and accumulate its gradient.

        Args:
            index: of the step, from 0.
            lr_factor: the user's learning-rate multiplier.
            control: whether this rank wants control after the step; whether any does comes back
                with the loss.
        """
        with self.times.spending(step_times.COMPUTE):
            return self._measure(index, lr_factor, control)

    def _measure(self, index: int, lr_factor: float, control: bool) -> Measured:
        lr = self.optimizers.set_lr(index, lr_factor)
        loss = self._accumulate(index)
        for member in self.optimizers.members:
            self.scaler.unscale_(member)  # type: ignore[arg-type]  # uses param_groups alone
        if self.group.joined:
            loss, wishes = self.group.sum(torch.stack([loss, loss.new_full((), float(control))]))
        grads = self._grads()
        split = self.group if distributed.is_split(grads[0]) else Group()
        self._norms = distributed.norms([distributed.local(g) for g in grads], split)
        seen = [loss, torch.linalg.vector_norm(self._norms)]
        if self.group.joined:
            seen.append(wishes)
        self._look_ahead(index + 1)
        loss_value, norm, *wished = torch.stack(seen).tolist()  # the step's only transfer
        return Measured(
            index,
            lr,
            loss_value,
            norm,
            bool(self.grad_clip) and norm > self.grad_clip,
            control or any(wished),
        )

    def _accumulate(self, step: int) -> Tensor:
        """Backward through this rank's micro-batches; its share of the loss, on the device."""
        total = torch.zeros((), device=self.device.device)
        stop = self.slots.stop
        for start in range(self.slots.start, stop, self.micro_batch):
            slots = range(start, min(start + self.micro_batch, stop))
            if self.n_parts > 1:
                total += self._in_parts(step, slots)
            else:
                total += self._backward(step, slots, last=slots.stop == stop)
        return total / self.group.world if self.group.joined else total

    def _backward(self, step: int, slots: range, *, last: bool) -> Tensor:
        """The same for one micro-batch, before the ranks' shares are added."""
        with self.times.spending(step_times.DATA):
            x, y = self._shaped(*self.batch(step, slots))
        with distributed.reducing(self.forward, self.model, last=last):
            with self.dropout_stream(step, slots) as noise, self.device.autocast():
                loss = self.forward(x, y, noise=noise)
            # Ranks average their gradients, so each weighs its share by their number.
            loss = loss * (len(slots) * self.group.world / self.windows.batch)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _shaped(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Give a micro-batch the one shape and layout that a compiled loss is made for.

        A smaller last one is filled up with sequences whose targets are ignored.
        """
        if not self.device.compile:
            return x, y
        missing = min(self.micro_batch, len(self.slots)) - len(x)
        if not missing:
            return x.contiguous(), y.contiguous()
        return (
            torch.cat([x, x.new_zeros(missing, x.shape[1])]),
            torch.cat([y, y.new_full((missing, y.shape[1]), losses.IGNORED)]),
        )

    def try_micro_batch(self) -> None:
        """Compute the first micro-batch for nothing, as a rehearsal; the ranks need not meet."""
        try:
            self._backward(0, self._first_slots(), last=False)
        finally:
            self.optimizers.zero_grad()

    def _in_parts(self, step: int, slots: range) -> Tensor:
        """The same for one micro-batch in parts: one process, nothing to scale."""

        fetching: list[float] = []  # for each piece

        def loss(mine: range) -> Tensor:
            started = time.perf_counter()
            x, y = self.batch(step, mine)
            fetching.append(time.perf_counter() - started)
            with self.dropout_stream(step, mine) as noise, self.device.autocast():
                found = self.model.loss(x, y, noise)
            return found * (len(mine) / self.windows.batch)

        parameters = [p for _, p in self._named]
        pieces = parts.pieces(self.n_parts, len(slots), self._slot_flops)
        total, found = parts.gradients(loss, slots, self.n_parts, parameters, pieces)
        self.times.move(sum(fetching) / self.n_parts, step_times.DATA)
        for parameter, grad in zip(parameters, found, strict=True):
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
        return total

    @contextlib.contextmanager
    def dropout_stream(self, step: int, slots: range) -> Iterator[Noise | None]:
        """Dropout's noise as a function of the seed and of what is computed.

        On a CPU that is (step, slot), and the noise is given to the model. Devices and compiled
        models draw from PyTorch's generator, seeded by (step, first slot of the micro-batch).
        """
        keys = self.windows.seed, "dropout", step
        if not self.model.config.dropout:
            yield None
        elif self.device.eager_cpu:
            yield Noise([stream_seed(*keys, slot) for slot in slots])
        else:
            generator = _generator(self.device.device)
            before = generator.get_state()
            generator.manual_seed(stream_seed(*keys, slots.start))
            yield None
            generator.set_state(before)

    def apply(self, measured: Measured) -> None:
        """Clip and update weights and their average; the gradients are gone afterwards."""
        with self.times.spending(step_times.OPTIMIZER), self._updating():
            if measured.clipped:
                grads = [distributed.local(grad) for grad in self._grads()]
                torch._foreach_mul_(grads, self.grad_clip / (measured.grad_norm + 1e-6))
            for member in self.optimizers.members:
                self.scaler.step(member, n_parts=self.n_parts)  # type: ignore[arg-type]
            self.scaler.update()
            self.optimizers.zero_grad()
            self.average.update(measured.index)

    def _updating(self) -> contextlib.AbstractContextManager[None]:
        """With parts, which share larger updates, the rest is too little for OpenMP's threads."""
        return threads.alone() if self.n_parts > 1 else contextlib.nullcontext()

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
        finite = self._norms.isfinite().tolist()
        return [name for (name, _), good in zip(self._named, finite, strict=True) if not good]
