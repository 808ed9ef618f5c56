"""Memory that a process freed: whether it is reused."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from programs import LIMIT

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
