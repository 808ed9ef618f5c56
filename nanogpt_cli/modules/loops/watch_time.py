"""What watching costs, measured while it is done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch


class OwnTime:
    """What the watching takes: the host's time, or the GPU's where that is more."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._seconds = 0.0
        self._spans: list[tuple[Any, Any]] = []
        self._depth = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Measure what is done in this context."""
        if self._depth:  # a span within another is counted once
            yield
            return
        self._depth += 1
        started, first = time.perf_counter(), self._mark()
        try:
            yield
        finally:
            self._depth -= 1
            self._seconds += time.perf_counter() - started
            if self.cuda:
                self._spans.append((first, self._mark()))

    def _mark(self) -> Any:
        if not self.cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def take(self) -> float:
        """Seconds since the last call; a GPU must have finished what the spans held."""
        if self._spans:
            self._spans[-1][1].synchronize()
        on_device: float = sum(first.elapsed_time(last) for first, last in self._spans) / 1000
        found, self._seconds, self._spans = max(self._seconds, on_device), 0.0, []
        return found
