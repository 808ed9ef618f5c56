"""Threads whose operations stay on them: no barriers, and bits that depend on no thread count."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")
_MOST = 8
_MAKING = threading.Lock()


@functools.cache
def pool(size: int) -> ThreadPoolExecutor:
    """``size`` of them, all running."""
    before = torch.get_num_threads()
    made = ThreadPoolExecutor(size, "alone", _stay_alone)
    list(made.map(lambda wait: wait(), [threading.Barrier(size).wait] * size))
    torch.set_num_threads(before)  # the setting is also what threads to come begin with
    return made


def alone(work: Callable[[], Result]) -> Result:
    """``work`` on one such thread, waited for; several callers go side by side.

    LAPACK's results differ in their last bits with the number of threads it finds free.
    """
    with _MAKING:  # two callers at once would make two pools, and mix up the common setting
        threads = pool(min(_MOST, os.cpu_count() or 1))
    return threads.submit(work).result()


def _stay_alone() -> None:
    """Keep this thread's operations on it.

    PyTorch gives a thread the common setting at its first operation, over what was set in it
    before; asking for the count counts as one.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)
