"""Where the wall-clock time of a run goes: data, forward and backward, optimizer, and so on.

The parts are those of the Python thread that trains. On a GPU that thread queues work and waits
once a step, for loss and gradient norm, and nothing more is waited for to measure it: what the GPU
has to do for forward, backward and the previous update shows up as that wait, within ``compute``;
``optimizer`` is the time to queue an update.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

DATA = "data"  # token windows, and copying them to the device
COMPUTE = "compute"  # forward and backward, the exchange between ranks, the gradient norm
OPTIMIZER = "optimizer"  # clipping and the update of weights and average
STATISTICS = "statistics"
EVALUATION = "evaluation"
CHECKPOINT = "checkpoint"
SAMPLE = "sample"
PAUSED = "paused"
OTHER = "other"  # start, commands, the log and its sinks
PARTS = (DATA, COMPUTE, OPTIMIZER, STATISTICS, EVALUATION, CHECKPOINT, SAMPLE, PAUSED, OTHER)


class StepTimes:
    """A stopwatch that always runs, for the part that was named last; ``totals`` from any thread.

    One thread trains and names the parts.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._part, self._since = OTHER, clock()

    @contextlib.contextmanager
    def spending(self, part: str) -> Iterator[None]:
        """The time inside the block belongs to ``part``, but for blocks within it."""
        before = self._switch(part)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, part: str) -> str:
        with self._lock:
            now = self._clock()
            before = self._part
            self._seconds[before] = self._seconds.get(before, 0.0) + now - self._since
            self._part, self._since = part, now
        return before

    def move(self, seconds: float, part: str) -> None:
        """Count some of the present part's time to another one, as that which threads measured."""
        with self._lock:
            for name, change in ((self._part, -seconds), (part, seconds)):
                self._seconds[name] = self._seconds.get(name, 0.0) + change

    def totals(self) -> dict[str, float]:
        """Seconds of every part so far, the present one included."""
        with self._lock:
            found = dict(self._seconds)
            found[self._part] = found.get(self._part, 0.0) + self._clock() - self._since
        return found
