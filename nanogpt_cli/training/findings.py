"""What a rule of the alarms finds, before hysteresis makes alarms of it."""

from __future__ import annotations

from dataclasses import dataclass


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
