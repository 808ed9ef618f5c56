"""Threads in which PyTorch runs single-threaded: no barriers, and results that do not depend on
the thread count.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from nanogpt_cli import host

Result = TypeVar("Result")
_MOST = 8
_MAKING = threading.Lock()


@functools.cache
def pool(size: int) -> ThreadPoolExecutor:
    """A started pool of ``size`` threads in each of which PyTorch is single-threaded."""
    before = torch.get_num_threads()
    made = ThreadPoolExecutor(size, "single", _single_thread)
    list(made.map(lambda wait: wait(), [threading.Barrier(size).wait] * size))
    torch.set_num_threads(before)  # the workers' setting would also become that of later threads
    return made


def single_threaded(work: Callable[[], Result]) -> Result:
    """Run ``work`` on such a thread and wait for its result; several callers run in parallel.

    LAPACK's results differ in their last bits with the number of threads it gets.
    """
    with _MAKING:  # two simultaneous callers would make two pools and disturb the global setting
        threads = pool(min(_MOST, host.usable_cores()))
    return threads.submit(work).result()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, PyTorch computes in this thread alone.

    Waking OpenMP's threads takes longer than they save on an operation of some 100,000 values.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _single_thread() -> None:
    """Make PyTorch single-threaded in this thread.

    PyTorch applies the global setting at a thread's first operation and overwrites what was set in
    it before. Reading the number of threads counts as such an operation, hence the first call.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)
