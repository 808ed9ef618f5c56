"""Work on a stream with all cores, results in order, a bounded number of items in flight.

Threads, not processes: tiktoken, tokenizers, hashlib and zlib release the interpreter lock while
they work, so threads scale as processes do, and neither copy the text nor outlive a killed parent.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def core_count() -> int:
    """Cores this process may use (its CPU affinity, not the machine's number)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result]:
    """``map(work, items)`` on ``workers`` threads; at most ``workers + 2`` items are in flight.

    An exception of ``work`` is raised in the order of the items. Leaving the iteration early
    cancels what has not begun and waits for what has.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tokenize")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= workers + 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
