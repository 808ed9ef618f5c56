"""What this machine can do: its devices, their matmul speed, whether ``torch.compile`` works."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from nanogpt_cli import host
from nanogpt_cli.machine import products

# Long enough for a matmul to reach its full speed, short enough that nobody has to wait.
_SECONDS = 0.3
_SIDE = {"cpu": 1024, "cuda": 8192, "mps": 2048}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

# A reduction and pointwise operations, which are what a training step needs from the compiler.
_COMPILED = """
import torch
x = torch.arange(1024.0, device={device!r}).reshape(32, 32)
f = torch.compile(lambda x: (x.sin() + 1).sum(1) * 2, fullgraph=True)
torch.testing.assert_close(f(x), (x.sin() + 1).sum(1) * 2)
"""


@dataclass(frozen=True)
class Unit:
    """A device that tensors can be placed on.

    Attributes:
        device: its name as ``train.device`` accepts it.
        name: its product name.
        memory_bytes: its own memory, or the machine's for a CPU; 0 where unknown.
        tflops: measured speed of square matrix products in TFLOP/s, by number format; formats
            that failed are left out.
        wrong: what went wrong, or "".
    """

    device: str
    name: str
    memory_bytes: int
    tflops: dict[str, float]
    wrong: str = ""


def units() -> list[Unit]:
    """Measure every device of this machine, one after the other."""
    names = ["cpu"]
    names += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    return [_unit(torch.device(name)) for name in names]


def _unit(device: torch.device) -> Unit:
    name, memory_bytes = _describe(device)
    rates: dict[str, float] = {}
    wrong = ""
    for label, dtype in _DTYPES.items():
        try:
            if not _multiplies_correctly(device, dtype):
                wrong = f"{label} matrix products are wrong"
            rates[label] = matmul_tflops(device, dtype)
        except RuntimeError as error:  # out of memory, a driver that does not fit, no such format
            if label == "fp32":
                wrong = str(error).splitlines()[0]
    return Unit(str(device), name, memory_bytes, rates, wrong)


def _describe(device: torch.device) -> tuple[str, int]:
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return found.name, int(found.total_memory)
    return f"{cpu_name()} ({torch.backends.cpu.get_cpu_capability()})", host.installed_bytes()


def cpu_name() -> str:
    """The processor's name as the operating system reports it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    return platform.processor() or platform.machine()


def _multiplies_correctly(device: torch.device, dtype: torch.dtype) -> bool:
    """Compare a product of small integers, which is exact in every format, with the true result."""
    a = torch.arange(64, device=device).reshape(8, 8) % 3
    product = a.to(dtype) @ a.to(dtype).T
    exact = (a[:, None, :] * a[None, :, :]).sum(-1)
    return bool(torch.equal(product.to(torch.int64), exact))


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """The best measured speed of a product of square matrices, in TFLOP/s.

    They are random: equal numbers switch fewer transistors, and a GPU at its power limit multiplies
    them faster than anything real. On a CPU in float32 it is a product as runs compute it.
    """
    side = _SIDE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(side, side, device=device, dtype=dtype, generator=generator)
    out = torch.empty_like(a)
    multiply: Callable[[], object] = partial(torch.mm, a, a, out=out)
    if device.type == "cpu" and dtype == torch.float32:
        multiply = partial(products.forward, a, a)
    multiply()  # warm up
    best = float("inf")
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        multiply()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e12


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class Compiling:
    """Whether ``torch.compile`` works on a device.

    Attributes:
        works: whether a small function was compiled and gave correct results.
        seconds: how long that took, including the import of torch.
        why_not: the compiler's error message in one line, or "".
    """

    works: bool
    seconds: float
    why_not: str = ""


def try_compile(device: str, timeout_s: float = 120) -> Compiling:
    """Compile a small function in a process of its own, with an empty compiler cache."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="nanogpt-compile-") as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-c", _COMPILED.format(device=device)],
                env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHDYNAMO_VERBOSE": "0"},
                capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Compiling(False, timeout_s, f"not done after {timeout_s:.0f} s")
    seconds = time.perf_counter() - start
    if done.returncode == 0:
        return Compiling(True, seconds)
    return Compiling(False, seconds, _reason(done.stderr) or f"exit code {done.returncode}")


def _reason(text: str) -> str:
    """The error line of a traceback: the last that begins with an exception's name."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error:" in line.split(" ", 1)[0] + " "]
    return (named or lines or [""])[-1][:200]
