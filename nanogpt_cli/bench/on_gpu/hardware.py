"""Item ``machine``: what the GPU and its libraries are, and how fast."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import warnings
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

from nanogpt_cli.bench.on_gpu import setup
from nanogpt_cli.bench.on_gpu.commands import command
from nanogpt_cli.bench.on_gpu.report import Part, Report, Setting, one_line

if TYPE_CHECKING:
    import torch

_QUERY = "name,driver_version,memory.total,power.limit,clocks.max.sm"


def work(report: Report, setting: Setting) -> None:
    """Versions, speed of products and memory, attention kernels, and the command ``doctor``."""
    import torch

    device = torch.device(setting.device)
    with report.part("versions") as part:
        _versions(part, device)
    with report.part("matmul") as part:
        _matmul(part, device)
    with report.part("memory") as part:
        _memory(part, device, setting.size(1 << 30, 1 << 22))
    for dropout in (0.0, 0.1):
        with report.part("attention" if not dropout else "attention with dropout") as part:
            _attention(part, device, setting, dropout)
    with report.part("doctor") as part:
        found = json.loads(command("doctor", "--json", "--no-compile", codes=(0, 1)))
        part.facts |= {"problems": found["problems"], "devices": found["devices"]}
        for unit in found["devices"]:
            part.check(not unit["wrong"], f"{unit['device']}: {unit['wrong']}")


def _versions(part: Part, device: torch.device) -> None:
    import numpy as np
    import torch

    part.facts |= {
        "python": platform.python_version(), "platform": platform.platform(),
        "torch": torch.__version__, "numpy": np.__version__, "triton": "",
        "cuda": torch.version.cuda, "compiler": shutil.which("cc") or "",
    }  # fmt: skip
    with suppress(metadata.PackageNotFoundError):
        part.facts["triton"] = metadata.version("triton")
    if device.type != "cuda":
        return
    about = torch.cuda.get_device_properties(device)
    part.facts |= {
        "name": about.name, "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count, "memory_bytes": about.total_memory,
        "nvidia_smi": _smi(),
    }  # fmt: skip
    part.facts["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    part.facts["nccl"] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]


def _smi() -> dict[str, str]:
    """What NVIDIA's tool says of the first GPU; empty where there is no such tool."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader", "-i", "0"],
            capture_output=True, text=True, errors="replace", timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_QUERY.split(","), map(str.strip, done.stdout.split(",")), strict=False))


def _matmul(part: Part, device: torch.device) -> None:
    """TFLOP/s of large square products in each number format."""
    import torch

    from nanogpt_cli.machine import capabilities

    formats = {
        "fp32": (torch.float32, "highest"), "tf32": (torch.float32, "high"),
        "bf16": (torch.bfloat16, "highest"),
    }  # fmt: skip
    for name, (dtype, precision) in formats.items():
        if name == "tf32" and device.type != "cuda":
            continue
        torch.set_float32_matmul_precision(precision)
        part.facts[f"{name}_tflops"] = capabilities.matmul_tflops(device, dtype)
    torch.set_float32_matmul_precision("highest")


def _memory(part: Part, device: torch.device, nbytes: int) -> None:
    """Bytes per second of a copy, those read and those written."""
    import torch

    source = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    took = setup.seconds(lambda: target.copy_(source), device, repeats=20)
    part.facts |= {"bytes": nbytes, "bytes_per_s": 2 * nbytes / took}


def _attention(part: Part, device: torch.device, setting: Setting, dropout: float) -> None:
    """Which kernel runs in gpt2-124m's shape, and how long each one takes, forward and backward."""
    import torch
    from torch.nn.attention import SDPBackend

    shape = (setting.size(12, 1), setting.size(12, 2), setting.size(1024, 32), 64)
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(shape, device=device, dtype=torch.bfloat16, generator=generator)
        .requires_grad_()
        for _ in range(3)
    )  # fmt: skip
    chosen = torch._fused_sdp_choice(q, k, v, None, dropout, True)
    names = {int(backend.value): name for name, backend in SDPBackend.__members__.items()}
    part.facts |= {"shape": shape, "chosen": names.get(chosen, str(chosen)), "kernels": {}}
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        part.facts["kernels"][name] = _timed(SDPBackend.__members__.get(name), (q, k, v), dropout)


def _timed(backend: Any, qkv: tuple[torch.Tensor, ...], dropout: float) -> dict[str, Any]:
    """Milliseconds of one kernel, or why it does not run here."""
    import torch
    from torch.nn.attention import sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as attend

    q, k, v = qkv
    if backend is None:
        return {"ms": None, "why": "this PyTorch has no such kernel"}
    upstream = torch.ones_like(q)

    def step() -> None:
        out = attend(q, k, v, dropout_p=dropout, is_causal=True)
        torch.autograd.grad(out, (q, k, v), upstream)

    with warnings.catch_warnings(record=True) as reasons:
        warnings.simplefilter("always")
        try:
            with sdpa_kernel(backend):
                return {"ms": 1e3 * setup.seconds(step, q.device, repeats=10), "why": ""}
        except RuntimeError as error:
            said = [str(reason.message).split(" (Triggered")[0] for reason in reasons]
            return {"ms": None, "why": "; ".join([one_line(error), *said])[:600]}
