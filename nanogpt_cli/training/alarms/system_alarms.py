"""Alarms about the machine: disk, memory, and a GPU that waits. Pure: no clock, no files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean

from nanogpt_cli import units
from nanogpt_cli.run.events import Alarm, Checkpoint, Event, RunStarted, System
from nanogpt_cli.training import step_times
from nanogpt_cli.training.alarms.hysteresis import Finding, Hysteresis

KINDS = ("disk_low", "memory_near_limit", "gpu_starved")
# Checkpoints that must fit beside those that are kept: one is written before another is removed.
DISK_CHECKPOINTS = 2
# Room beside a checkpoint for logs and samples; with less a save refuses to begin.
SPARE_BYTES = 16 << 20
# Of a parameter: the weight and AdamW's two moments, in float32. Until a checkpoint has been saved.
CHECKPOINT_BYTES = 12
# Share of the memory, or of a control group's limit, that may be in use.
MAX_MEMORY = 0.95
# A GPU waits for data if it works less than this share of the time ...
STARVED_UTILIZATION = 0.5
# ... and fetching data takes more than this one.
STARVED_DATA = 0.2


@dataclass
class SystemAlarms:
    """Feed it every event of a run; it answers with alarms about the machine."""

    _raised: Hysteresis = field(default_factory=Hysteresis)
    _checkpoint: int = 0  # bytes

    def update(self, event: Event) -> list[Alarm]:
        """The alarms that ``event`` raises or clears."""
        if isinstance(event, RunStarted) and not self._checkpoint:
            self._checkpoint = event.parameters * CHECKPOINT_BYTES
        elif isinstance(event, Checkpoint):
            self._checkpoint = event.bytes or self._checkpoint
        elif isinstance(event, System):
            return self._raised.settle(event.step, KINDS, list(self._found(event)))
        return []

    def recall(self, event: Event) -> None:
        """Take over what the log of a run that is resumed says."""
        if isinstance(event, Alarm) and event.kind in KINDS:
            self._raised.recall(event)
        elif isinstance(event, Checkpoint):
            self.update(event)

    def _found(self, event: System) -> Iterator[Finding]:
        yield from self._disk(event)
        yield from self._memory(event)
        yield from self._starved(event)

    def _disk(self, event: System) -> Iterator[Finding]:
        free, one = event.disk_free, self._checkpoint
        if free is not None and free < DISK_CHECKPOINTS * one + SPARE_BYTES:
            fails = free < one + SPARE_BYTES
            yield Finding(
                "disk_low", "error" if fails else "warning",
                f"{units.size(free)} are free where checkpoints go: the next one takes "
                f"{units.size(one)} and leaves {units.size(SPARE_BYTES)} for the log"
                + (", so it will fail" * fails),
                "free some space (nanogpt cache list), or keep fewer checkpoints: train.keep = 1",
                value=free,
            )  # fmt: skip

    def _memory(self, event: System) -> Iterator[Finding]:
        """The limit that is nearest, of those that are known."""
        found = [
            (used / total, used, total, name)
            for used, total, name in (
                (event.memory_used, event.memory_total, "the machine's memory"),
                (event.group_used, event.group_limit, "the control group's limit"),
            )
            if used is not None and total
        ]
        share, used, total, name = max(found, default=(0.0, 0, 0, ""))
        if share > MAX_MEMORY:
            yield Finding(
                "memory_near_limit", "warning",
                f"{units.size(used)} of {name}, {units.size(total)}, are in use"
                + (f"; this run holds {units.size(event.rss)}" if event.rss else ""),
                "the system may kill the run: lower train.batch_size, or end other programs",
                value=share,
            )  # fmt: skip

    def _starved(self, event: System) -> Iterator[Finding]:
        busy = [gpu["utilization"] for gpu in event.gpus.values() if "utilization" in gpu]
        whole = sum(event.times.values())
        if not busy or whole <= 0:
            return
        waiting = event.times.get(step_times.DATA, 0.0) / whole
        if fmean(busy) < STARVED_UTILIZATION and waiting > STARVED_DATA:
            yield Finding(
                "gpu_starved", "warning",
                f"the GPU is {units.percent(fmean(busy))} busy, while fetching data takes "
                f"{units.percent(waiting)} of the time",
                "put the prepared data on a faster disk (NANOGPT_HOME), or end what else reads "
                "from it", value=waiting,
            )  # fmt: skip
