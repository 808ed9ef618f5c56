"""Number formats: where bfloat16 is native, and float32 with all its digits."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch

# The first compute capability of NVIDIA's GPUs with bf16 (Ampere).
_BF16 = (8, 0)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Inside, products of float32 have all its digits, also where the run allows TF32."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set for each backend, of which this one setting cannot speak
        before = ""
    if before == "highest":
        yield
        return
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    each = [backend.fp32_precision for backend in backends]
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if before:
            torch.set_float32_matmul_precision(before)
        else:
            for backend, value in zip(backends, each, strict=True):
                backend.fp32_precision = value


def multiplies_bf16(device: torch.device) -> bool:
    """Whether ``device`` has bfloat16 instructions; elsewhere PyTorch emulates them, slowly."""
    if device.type == "cpu":
        return cpu_multiplies_bf16()
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _BF16


@functools.cache
def cpu_multiplies_bf16() -> bool:
    """Whether this processor has bfloat16 instructions (AVX512-BF16 or AMX).

    Without them bfloat16 products are emulated, many times slower than float32.
    """
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
