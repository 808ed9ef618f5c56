"""From conditions that hold now to alarms that are raised and cleared once.

An alarm is raised when its condition has held for a few observations, and cleared when it has been
absent as long, so a log holds changes, not repetitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nanogpt_cli.run.events import Alarm

# Observations a condition must hold (or be absent) before its alarm is raised (or cleared).
PATIENCE = 3


@dataclass(frozen=True)
class Finding:
    """A condition that holds now.

    Attributes:
        kind: of the alarm; ``run.explained.ALARMS`` lists them.
        severity: ``info``, ``warning`` or ``error``; an error is raised at its first observation.
        message: what was seen, with numbers.
        advice: what to do.
        layer: ``None`` if it concerns the whole model.
        value: that was judged.
        at_once: raised at its first observation although it is no error.
    """

    kind: str
    severity: str
    message: str
    advice: str
    layer: int | None = None
    value: float | None = None
    at_once: bool = False


@dataclass
class _State:
    held: int = 0
    absent: int = 0
    active: bool = False


@dataclass
class Hysteresis:
    """Remembers which conditions have held, by kind and layer."""

    _states: dict[tuple[str, int | None], _State] = field(default_factory=dict)

    def settle(
        self,
        step: int,
        kinds: Sequence[str],
        findings: Sequence[Finding],
        patience: int = PATIENCE,
    ) -> list[Alarm]:
        """The alarms that are raised or cleared by one observation.

        Args:
            step: of the observation.
            kinds: those it can tell about.
            findings: what holds now among them.
            patience: observations until an alarm is raised or cleared.
        """
        now = {(f.kind, f.layer): f for f in findings}
        alarms = []
        for key in {*now, *(k for k in self._states if k[0] in kinds)}:
            state = self._states.setdefault(key, _State())
            found = now.get(key)
            state.held = state.held + 1 if found else 0
            state.absent = 0 if found else state.absent + 1
            at_once = found is not None and (found.at_once or found.severity == "error")
            if found and not state.active and (at_once or state.held >= patience):
                state.active = True
                alarms.append(_alarm(step, found))
            elif not found and state.active and state.absent >= patience:
                state.active = False
                alarms.append(
                    Alarm(
                        step=step, kind=key[0], layer=key[1], severity="info", active=False,
                        message=f"{key[0].replace('_', ' ')}: back to normal",
                    )
                )  # fmt: skip
        return sorted(alarms, key=lambda a: (a.kind, -1 if a.layer is None else a.layer))

    def recall(self, alarm: Alarm) -> None:
        """Take over an alarm that the log holds, as a resumed run must, to clear it one day."""
        self._states[alarm.kind, alarm.layer] = _State(active=alarm.active)

    def is_active(self, kind: str) -> bool:
        """Whether an alarm of this kind, about no layer, has been raised and not cleared."""
        state = self._states.get((kind, None))
        return state is not None and state.active


def _alarm(step: int, found: Finding) -> Alarm:
    return Alarm(
        step=step, kind=found.kind, severity=found.severity, message=found.message,
        advice=found.advice, layer=found.layer, value=found.value,
    )  # fmt: skip
