"""What this computer has and what this process has used of it: cores and memory."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


def usable_cores() -> int:
    """The number of CPU cores this process may use (its affinity, not all of the machine's)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def installed_bytes(otherwise: int = 0) -> int:
    """Bytes of memory this machine has; ``otherwise`` if the system does not say (Windows)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return otherwise


def available_bytes(*, with_swap: bool = False) -> int:
    """Bytes of memory that the system and this process's control group leave to a new process.

    Args:
        with_swap: whether to count the free swap space as well.
    """
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
    """The peak resident memory of this process in bytes; 0 if the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
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
