"""Memory of a device: how much a process may use, and whether it reuses what it freed."""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanogpt_cli import host, nvml

if TYPE_CHECKING:
    from nanogpt_cli.machine.device import Device

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_PAD = 1 << 26
_LARGEST = 1 << 30


@functools.cache
def keep_freed() -> bool:
    """Make glibc keep freed memory for reuse; returns whether that succeeded.

    By default glibc returns large blocks to the system at once and gets them back as pages that the
    kernel clears on first use: a step of a small model then spends a tenth of its time in page
    faults.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    wanted = ((_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _LARGEST), (_M_TOP_PAD, _PAD))
    return all(mallopt(key, value) for key, value in wanted)


def available_bytes(device: Device, *, with_swap: bool = False) -> int:
    """Bytes that a new process may use on a device: a GPU's free memory, else ``host``'s.

    Args:
        device: the device to compute on.
        with_swap: whether to count the system's free swap space as well.
    """
    if device.device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device.device)[0])
    return host.available_bytes(with_swap=with_swap)


def reachable_bytes(device: Device) -> int:
    """Bytes that this process has of a device's memory, and those that are free."""
    if device.device.type == "cuda":
        import torch

        return available_bytes(device) + int(torch.cuda.memory_reserved(device.device))
    return available_bytes(device, with_swap=True) + host.peak_bytes()


@dataclass(frozen=True)
class Gpu:
    """The GPU of a process, named so that any of its threads may ask about it.

    Attributes:
        key: its UUID as in ``nvml.py``; of other makes the device's name, as "mps".
        uuids: of it and, where they matter, of the others that the process sees; empty for other
            makes.
        number: in PyTorch's count; -1 for MPS.
    """

    key: str
    uuids: tuple[str, ...] = ()
    number: int = -1

    def allocator(self) -> dict[str, int]:
        """Bytes of PyTorch's allocator; nothing waits for the GPU.

        ``torch_allocated``: of tensors; ``torch_reserved``: taken from the driver for them;
        ``torch_peak``: most that tensors had so far, absent where it is not counted.
        """
        import torch

        if self.number < 0:
            return {
                "torch_allocated": int(torch.mps.current_allocated_memory()),
                "torch_reserved": int(torch.mps.driver_allocated_memory()),
            }
        known = torch.cuda.memory_stats(self.number)
        names = {"allocated": "allocated_bytes.all.current", "peak": "allocated_bytes.all.peak",
                 "reserved": "reserved_bytes.all.current"}  # fmt: skip
        return {f"torch_{name}": int(known[key]) for name, key in names.items() if key in known}


def gpu(device: Device, *, all_visible: bool) -> Gpu | None:
    """The GPU of a device; ``None`` for a CPU. To be asked by the thread that computes on it."""
    import torch

    if device.device.type == "mps":
        return Gpu("mps")
    if device.device.type != "cuda":
        return None
    here = torch.cuda.current_device() if device.device.index is None else device.device.index
    if torch.version.hip:
        return Gpu(f"cuda:{here}", (), here)
    others = [n for n in range(torch.cuda.device_count()) if n != here] if all_visible else []
    uuids = [nvml.bare(str(torch.cuda.get_device_properties(n).uuid)) for n in (here, *others)]
    return Gpu(uuids[0], tuple(uuids), here)


# PyTorch has an error class for devices, but none for CPUs, MPS and libraries such as cuBLAS.
_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Whether Python, PyTorch or a library it calls found too little memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
    )


def give_back() -> None:
    """Return freed memory to the system where the C library (glibc) keeps it for later.

    It keeps what lies between pieces that are still in use, which after gigabytes of temporary
    tensors can be hundreds of megabytes.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return None
