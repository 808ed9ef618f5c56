"""The machine's memory: how much a process may use, and whether it reuses what it freed."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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


def total_bytes(otherwise: int = 0) -> int:
    """Bytes of memory that this machine has; ``otherwise`` if the system does not say (Windows)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return otherwise


def available_bytes(device: Device, *, with_swap: bool = False) -> int:
    """Bytes that a new process may use on a device.

    On a GPU this is its free memory, else what the system and its control group leave.

    Args:
        device: the device to compute on.
        with_swap: whether to count the system's free swap space as well.
    """
    if device.device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device.device)[0])
    # Some systems (macOS) do not count free pages; there the installed memory is the bound.
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages)
    table = dict(line.split(":", 1) for line in _lines(Path("/proc/meminfo")) if ":" in line)
    if "MemAvailable" in table:
        free = _kilobytes(table["MemAvailable"])
    limit, used = (
        next(iter(_lines(Path("/sys/fs/cgroup") / name)), "max")
        for name in ("memory.max", "memory.current")
    )
    if limit != "max" and used != "max":
        free = min(free, int(limit) - int(used))
    return free + (_kilobytes(table.get("SwapFree", "0")) if with_swap else 0)


def peak_bytes() -> int:
    """Peak resident memory of this process in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _kilobytes(text: str) -> int:
    return math.floor(float(text.split()[0]) * 1024)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
