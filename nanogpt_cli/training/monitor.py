"""What the machine does while a run trains, sampled beside it and merged into its events.

A daemon thread samples; it never touches the model, and the training thread never waits for it.
``drive`` takes what it has found between two events of the trainer. Whatever fails here ends the
sampling and not the run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from nanogpt_cli.machine import memory
from nanogpt_cli.run import events
from nanogpt_cli.system import Sampler
from nanogpt_cli.training.alarms.system_alarms import SystemAlarms
from nanogpt_cli.training.trainer import Trainer

# Share of one core that sampling may use; where a sample costs more, samples are rarer.
SHARE = 0.002
# Seconds until the first sample, so that short runs have one; a shorter rest gets none.
_FIRST = 1.0
_LONGEST_WAIT = 1.0  # seconds that the end of a run waits for a sample under way


class Monitor:
    """Samples the machine and a trainer's process every few seconds, from ``start`` to ``stop``.

    Args:
        trainer: the run's; on its first rank, whose host is the one that is sampled.
        folder: on the disk that checkpoints go to.
    """

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.every = trainer.recipe.log.system_every
        self.alarms = SystemAlarms()
        self._trainer, self._folder = trainer, folder
        self._found: deque[events.System] = deque()
        self._said: deque[str] = deque()
        self._gpu: memory.Gpu | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system", daemon=True)
        self._sampler: Sampler | None = None
        self._totals: dict[str, float] = {}
        self._steps = 0
        self._last = 0.0

    def start(self) -> None:
        """Begin, unless the recipe says that there are to be no samples."""
        if self.every:
            self._guarded(self._begin)
            self._thread.start()

    def _begin(self) -> None:
        spec = self._trainer.spec
        self._gpu = memory.gpu(spec.device, all_visible=spec.group.joined)
        self._totals = self._trainer.stepper.times.totals()
        self._steps = self._trainer.progress.step
        self._last = time.monotonic()

    def stop(self) -> None:
        """End the thread, waiting for a sample under way at most a second."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_LONGEST_WAIT)
        if not self._thread.is_alive() and self._sampler is not None:
            self._sampler.close()
            self._sampler = None

    def told(self) -> Iterator[events.Event]:
        """The trainer's events, with samples, their alarms and the last sample in between."""
        for event in self._trainer.run():
            if isinstance(event, events.RunEnded):
                yield from self._finish()
            self.alarms.update(event)
            yield event
            yield from self._take()

    def _finish(self) -> Iterator[events.Event]:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_LONGEST_WAIT)
            if not self._thread.is_alive() and time.monotonic() - self._last >= _FIRST:
                self._guarded(self._sample)
        yield from self._take()

    def _take(self) -> Iterator[events.Event]:
        """What has been found since the last call, with the alarms it raises."""
        step = self._trainer.progress.step
        while self._found:
            # Numbered as it is written, so that what is void after a crash is void with its steps.
            found = replace(self._found.popleft(), step=step)
            yield found
            for alarm in self.alarms.update(found):
                yield replace(alarm, time=time.time())
        while self._said:
            yield events.Note(time=time.time(), step=step, message=self._said.popleft())

    def _work(self) -> None:
        self._guarded(self._sample_until_stopped)

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # a library may raise anything
            reason = " ".join(str(error).split())[:200]
            self._said.append(f"no more system metrics: {type(error).__name__}: {reason}")
            self._sampler = None

    def _sample_until_stopped(self) -> None:
        uuids = self._gpu.uuids if self._gpu else ()
        self._sampler = Sampler(self._folder, gpus=uuids or None)
        if self._sampler.nvml and self._sampler.nvml.why_not:
            self._said.append(f"no GPU metrics: {self._sampler.nvml.why_not}")
        pause = min(self.every, _FIRST)
        while not self._stop.wait(pause):
            pause = max(self.every, self._sample() / SHARE)

    def _sample(self) -> float:
        """Take one sample; the CPU seconds that it took."""
        if self._sampler is None:
            return 0.0
        started = time.thread_time()
        now, found = time.time(), self._sampler.sample()
        if self._gpu is not None:
            found["gpus"].setdefault(self._gpu.key, {}).update(self._gpu.allocator())
        totals, steps = self._trainer.stepper.times.totals(), self._trainer.progress.step
        times = {part: totals[part] - self._totals.get(part, 0.0) for part in totals}
        found["seconds"] = round(sum(times.values()), 4)  # as the trainer's stopwatch has it
        self._found.append(
            events.System(
                time=now, step=steps, steps=max(0, steps - self._steps),
                times={part: round(spent, 6) for part, spent in times.items() if spent > 0},
                **found,
            )
        )  # fmt: skip
        self._totals, self._steps, self._last = totals, steps, time.monotonic()
        return time.thread_time() - started
