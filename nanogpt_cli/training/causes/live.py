"""What an alarm about the loss says of its origin, while the run trains: the chain's first link."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from nanogpt_cli.run import events
from nanogpt_cli.training.causes import chain, record
from nanogpt_cli.training.causes.record import Record

# Alarms about the loss, whose origin may be elsewhere.
KINDS = ("non_finite", "loss_spike", "divergence")


@dataclass
class Origin:
    """Remembers the last steps of a run, and names what left its band before the loss did."""

    _record: Record = field(default_factory=Record)

    def note(self, event: events.Event) -> None:
        """Remember a step, or statistics of the layers."""
        if isinstance(event, events.Step | events.Layers):
            record.take(self._record, event)
            found = self._record
            for kept, most in (
                (found.losses, chain.STEPS), (found.lrs, chain.STEPS),
                (found.grad_norms, chain.STEPS), (found.layers, chain.OBSERVATIONS),
            ):  # fmt: skip
                _forget(kept, most)
            found.skipped &= found.losses.keys()

    def named(self, alarm: events.Alarm) -> events.Alarm:
        """The alarm; if it is about the loss, with the statistic that left its band before."""
        if alarm.kind not in KINDS or not alarm.active:
            return alarm
        story = chain.tell(self._record, record.Event(alarm.step, alarm.kind))
        first = story.first
        if first is None or first.step >= story.onset:
            return alarm
        message = f"{alarm.message}; first: {first.words}, at step {first.step}"
        return replace(alarm, message=message)


def _forget(kept: dict[int, Any], most: int) -> None:
    """Drop the oldest entries."""
    while len(kept) > most:
        del kept[next(iter(kept))]
