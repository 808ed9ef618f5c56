"""What the program says of the computer, against what Linux and Python say."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from nanogpt_cli import host

linux = pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc")


def kilobytes(file: str, key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
    assert found
    return int(found.group(1))


def test_usable_cores_follow_the_affinity() -> None:
    assert 1 <= host.usable_cores() <= (os.cpu_count() or 1)
    if not hasattr(os, "sched_setaffinity"):
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert host.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@linux
def test_memory_is_the_systems() -> None:
    total = 1024 * kilobytes("/proc/meminfo", "MemTotal")
    assert host.installed_bytes() == pytest.approx(total, rel=0.01)
    assert 0 < host.available_bytes() <= total
    swap = host.available_bytes(with_swap=True) - host.available_bytes()
    free = 1024 * kilobytes("/proc/meminfo", "SwapFree")
    assert swap == pytest.approx(free, abs=total // 4)  # other programs take and give memory


@linux
def test_the_peak_is_the_largest_size_this_process_had() -> None:
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    assert host.peak_bytes() == pytest.approx(
        1024 * kilobytes("/proc/self/status", "VmHWM"), rel=0.1
    )


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", refuse)
    assert host.installed_bytes(otherwise=7) == 7
    monkeypatch.setitem(sys.modules, "resource", None)
    assert host.peak_bytes() == 0
