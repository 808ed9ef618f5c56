"""Processing a stream on all cores: results in order, a bounded number of items in flight.

Threads are used instead of processes. tiktoken, tokenizers, hashlib and zlib release the
interpreter lock, so threads scale as well, copy no text and cannot outlive a killed parent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result]:
    """``map(work, items)`` on ``workers`` threads; at most ``workers + 2`` items are in flight.

    An exception raised by ``work`` appears in the order of the items. Leaving the iteration early
    cancels items that have not been started and waits for the others.
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
