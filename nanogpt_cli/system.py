"""What the machine and this process are doing now: CPU, memory, disk, GPUs. See ``Sampler``."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nanogpt_cli import host
from nanogpt_cli.nvml import Nvml

# Looking for children means to look at every process of the machine: at most this share of a core.
_SEARCH = 0.0005


class Sampler:
    """Samples this machine and this process; shares of time are since the sample before.

    Not for several threads at once.

    Args:
        folder: on the disk whose free space matters.
        gpus: UUIDs of the GPUs that matter; empty: all of the machine; ``None``: none.
        library: stands for ``pynvml``.
    """

    def __init__(
        self, folder: Path, *, gpus: Collection[str] | None = (), library: Any = None
    ) -> None:
        import psutil

        self._psutil = psutil
        self.folder = folder
        self.nvml = Nvml(gpus, library) if gpus is not None else None
        self._process = psutil.Process()
        self._children: list[Any] = []
        self._search_at, self._searched = 0.0, False
        self._machine = self._machine_times()
        self._used: dict[int, float] = self._process_times()
        self._at = time.monotonic()

    def sample(self) -> dict[str, Any]:
        """The fields of ``run.events.System`` that are known here; what is unknown is ``None``."""
        now = time.monotonic()
        seconds, self._at = now - self._at, now
        group = host.control_group()
        memory, disk = self._ask(self._psutil.virtual_memory), self._ask(self._disk)
        used = self._process_times()
        # A child that has ended or is new counts from its next sample on.
        spent = sum(used[pid] - self._used[pid] for pid in used.keys() & self._used.keys())
        self._used = used
        load = self._ask(getattr(os, "getloadavg", None))
        return {
            "seconds": round(seconds, 4),
            "cores": host.usable_cores(),
            "cpu": self._machine_share(),
            "load": round(load[0], 2) if load else None,
            "process_cpu": round(max(0.0, spent) / seconds, 4) if seconds > 0 else None,
            "memory_used": memory.total - memory.available if memory else None,
            "memory_total": memory.total if memory else None,
            "group_used": group.used if group else None,
            "group_limit": group.limit if group else None,
            "rss": self._rss(self._process),
            "children": len(self._children) if self._searched else None,
            "children_rss": sum(self._rss(child) or 0 for child in self._children)
            if self._searched
            else None,
            "disk_free": disk.free if disk else None,
            "disk_total": disk.total if disk else None,
            "gpus": self.nvml.read() if self.nvml else {},
        }

    def close(self) -> None:
        """Let the libraries go."""
        if self.nvml:
            self.nvml.close()

    def _disk(self) -> Any:
        return shutil.disk_usage(self.folder)

    def _rss(self, process: Any) -> int | None:
        found = self._ask(process.memory_info)
        return found.rss if found else None

    def _machine_times(self) -> tuple[float, float] | None:
        """Busy and all CPU seconds of the machine since it started."""
        times = self._ask(self._psutil.cpu_times)
        if times is None:
            return None
        # Linux counts the time of guests within that of user and nice.
        known = times._asdict()
        whole = sum(value for name, value in known.items() if not name.startswith("guest"))
        return whole - known["idle"] - known.get("iowait", 0.0), whole

    def _machine_share(self) -> float | None:
        before, self._machine = self._machine, self._machine_times()
        if before is None or self._machine is None or self._machine[1] <= before[1]:
            return None
        share = (self._machine[0] - before[0]) / (self._machine[1] - before[1])
        return round(min(1.0, max(0.0, share)), 4)

    def _process_times(self) -> dict[int, float]:
        """CPU seconds of this process and its children so far, by process id."""
        self._find_children()
        found = {}
        for process in (self._process, *self._children):
            if times := self._ask(process.cpu_times):
                found[process.pid] = times.user + times.system
        return found

    def _find_children(self) -> None:
        """Look for children now and then; those that have ended are left out each time."""
        now = time.monotonic()
        if now >= self._search_at:
            started = time.thread_time()
            found = self._ask(lambda: self._process.children(recursive=True))
            self._children, self._searched = found or [], found is not None
            self._search_at = now + (time.thread_time() - started) / _SEARCH
        else:
            self._children = [child for child in self._children if self._ask(child.is_running)]

    def _ask(self, call: Any) -> Any:
        """What a call returns; ``None`` where the system does not answer."""
        if call is None:
            return None
        try:
            return call()
        except (OSError, NotImplementedError, RuntimeError, self._psutil.Error):
            return None
