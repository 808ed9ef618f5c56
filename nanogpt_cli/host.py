"""What this computer has and what this process has used of it: cores and memory."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

# Version 1 of control groups writes the largest number of pages where there is no limit.
_NO_LIMIT = 1 << 60


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
    if group := control_group():
        free = min(free, group.limit - group.used)
    return free + (_kilobytes(table.get("SwapFree", "0")) if with_swap else 0)


@dataclass(frozen=True)
class ControlGroup:
    """The memory of a control group: a container, or a job of a scheduler.

    Attributes:
        limit: bytes beyond which the system kills a process of the group.
        used: bytes that cannot be given back, so without cached files.
    """

    limit: int
    used: int


def control_group(
    root: Path = Path("/sys/fs/cgroup"), member: Path = Path("/proc/self/cgroup")
) -> ControlGroup | None:
    """Of this process's control group and those above it, the one with the least room.

    ``None`` where memory has no limit. Both versions of control groups are read.

    Args:
        root: where they are mounted.
        member: says in which ones this process is.
    """
    found: list[ControlGroup] = []
    for line in _lines(member) or ["0::/"]:
        controllers, path = (*line.split(":", 2), "", "")[1:3]
        if not controllers:
            base, names = root, ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            base = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        folder = base / path.strip().lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(base) and (group := _group(place, *names)):
                found.append(group)
    return min(found, key=lambda group: group.limit - group.used, default=None)


def _group(folder: Path, limit: str, used: str, prefix: str) -> ControlGroup | None:
    values = [next(iter(_lines(folder / name)), "max").strip() for name in (limit, used)]
    if not all(value.isdecimal() for value in values) or int(values[0]) >= _NO_LIMIT:
        return None
    words = (line.split() for line in _lines(folder / "memory.stat"))
    stat = {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdecimal()}
    cached = sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
    return ControlGroup(int(values[0]), max(0, int(values[1]) - cached))


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
