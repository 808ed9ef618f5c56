"""Memory that a process freed: whether it is reused, or given back."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from programs import LIMIT

from nanogpt_cli.machine import memory

_FAULTS = """
import resource
import torch
from nanogpt_cli.machine import memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
print(min(faults() for _ in range(20)))
assert memory.keep_freed()
print(min(faults() for _ in range(20)))  # the heap needs some rounds to settle
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_reused_without_page_faults() -> None:
    """Without the setting, glibc maps and unmaps a tensor of 48 MiB each time."""
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True, timeout=LIMIT
    )
    default, kept = map(int, done.stdout.split())
    assert kept < default / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_freed_memory_between_used_pieces_is_given_back() -> None:
    pieces = [bytearray(b"x" * 100_000) for _ in range(2000)]  # 200 MB, in the heap
    del pieces[::2]
    before = resident()
    memory.give_back()
    assert before - resident() > 50 << 20
    assert all(piece[0] == ord("x") for piece in pieces)


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * mmap.PAGESIZE
