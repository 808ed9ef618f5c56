"""The choice of device, number format and compilation, made once per run, with its reasons."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nanogpt_cli.errors import UserError
from nanogpt_cli.machine import products
from nanogpt_cli.machine.formats import multiplies_bf16

if TYPE_CHECKING:  # reading the recipe's models takes longer than loading a small checkpoint
    from nanogpt_cli import recipe

# Dense bf16 matmul peaks in FLOP/s from the vendors' data sheets, by a part of the device's name.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# The first compute capability with tensor cores (Volta).
_TENSOR_CORES = (7, 0)


@dataclass(frozen=True)
class Device:
    """How a run computes.

    Attributes:
        device: where tensors are placed.
        precision: "fp32", "tf32", "bf16" or "fp16".
        compile: whether to wrap the model with ``torch.compile``.
        name: the device's product name, or its type.
        peak_flops: the device's peak in this precision in FLOP/s; ``None`` where unknown.
        notes: reasons for the choice, as sentences for the user.
    """

    device: torch.device
    precision: str
    compile: bool
    name: str
    peak_flops: float | None
    notes: tuple[str, ...]

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context for forward passes."""
        if self.precision not in _HALF:
            return products.fast() if self.eager_cpu else contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_HALF[self.precision])

    def no_autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context for products within ``autocast`` that keep the format of their operands."""
        if self.precision not in _HALF:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, enabled=False)

    @property
    def eager_cpu(self) -> bool:
        """Whether this is a CPU without compilation.

        Only there are micro-batches computed in parallel parts, with dropout noise per sequence.
        """
        return self.device.type == "cpu" and not self.compile

    @property
    def muon_dtype(self) -> torch.dtype:
        """Dtype of Muon's Newton-Schulz iteration: bf16 where the hardware has it, else fp32."""
        wanted = self.device.type == "cuda" or self.precision == "bf16"
        return torch.bfloat16 if wanted and multiplies_bf16(self.device) else torch.float32

    def place(self, ids: Tensor) -> Tensor:
        """Copy a tensor of the host to the device; on CUDA without waiting for earlier work."""
        if self.device.type == "cuda":
            return ids.pin_memory().to(self.device, non_blocking=True)
        return ids.to(self.device)

    def synchronize(self) -> None:
        """Wait for queued work, so that a clock read afterwards includes it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def choose(train: recipe.Train) -> Device:
    """Choose from what the recipe asks for and what the machine has.

    Raises:
        UserError: the recipe asks for a device or format this machine lacks.
    """
    device = named(train.device)
    notes: list[str] = []
    precision = _precision(train, device, notes)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    compiled = _compile(train.compile, device, notes)
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)  # Inductor follows it
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    peak = None
    if precision in ("bf16", "fp16"):
        peak = next((flops for model, flops in PEAK_FLOPS.items() if model in name), None)
    return Device(device, precision, compiled, name, peak, tuple(notes))


def named(wanted: str) -> torch.device:
    """The device that a recipe's ``train.device`` names; nothing is set up on it.

    Raises:
        UserError: it is none to train on, or this machine lacks it.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UserError(
            f"train.device = {wanted!r} is not a device to train on",
            "auto, cpu, cuda, cuda:1 or mps",
        )
    missing = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise UserError(
            f"train.device = {wanted!r}, but this machine has no such device",
            'use train.device = "auto"',
        )
    return device


def _precision(train: recipe.Train, device: torch.device, notes: list[str]) -> str:
    chosen, native = train.precision, multiplies_bf16(device)
    if chosen not in ("auto", "bf16"):
        return chosen
    if native or device.type != "cuda":
        return "bf16" if native or chosen == "bf16" else "fp32"
    why = "this GPU has no bf16 arithmetic"
    if chosen == "bf16":
        why += ", so it is emulated, which is slow"
    elif torch.cuda.get_device_capability(device) < _TENSOR_CORES:
        chosen = "fp32"
    elif train.parallel == "fsdp":
        chosen, why = "fp32", f'{why}, and fp16 does not work with train.parallel = "fsdp"'
    else:
        chosen = "fp16"
    notes.append(f"{chosen}: {why}")
    return chosen


def _compile(wanted: bool | str, device: torch.device, notes: list[str]) -> bool:
    if wanted == "auto":
        if device.type != "cuda":
            notes.append(f"not compiled: auto compiles on CUDA only, this is {device.type}")
            return False
        return True
    return bool(wanted)
