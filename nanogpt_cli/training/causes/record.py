"""What the log of a run says, step by step: without torch, and whichever version wrote it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events, history
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.training.alarms.judge import BAD_START, Alarms

# Alarms of a condition that lasts, which may be all that is wrong with a run.
_LASTING = (
    "stuck", "dead_units", "attention_logits", "entropy_collapse", "activation_growth",
    "vanishing_gradient", "update_ratio", "no_attention",
)  # fmt: skip


@dataclass(frozen=True)
class Session:
    """One start or resume of the trainer: what was in force after ``step``."""

    step: int
    recipe: Mapping[str, Any]
    version: str = ""
    host: str = ""
    device: str = ""
    precision: str = ""
    processes: int = 1


@dataclass(frozen=True)
class Event:
    """What is to be explained.

    Attributes:
        step: from 1, as in the log.
        kind: "non_finite", "loss_spike", "divergence", "bad_start", an alarm's kind, or "asked"
            for a step that the user names.
        message: a sentence, as the log or this program has it.
    """

    step: int
    kind: str
    message: str = ""


@dataclass
class Record:
    """The effective history of a run; steps count from 1.

    Attributes:
        losses, lrs, grad_norms: by step; a loss may be NaN or infinite.
        skipped: steps that made no update.
        layers: by step, statistic -> one value a layer.
        sessions: every start and resume, the first one first.
        factors: the user's changes of the learning rate, as (step, factor).
        incidents, alarms: in order; alarms only where they were raised.
        standing: alarms that were not cleared again; those for information aside.
        vocab_size: 0 if it is not known.
        begun_from: trained weights that the run began with, as of ``events.RunStarted``.
        ending: why the run ended, as in ``events.RunEnded``; empty while it goes on.
    """

    losses: dict[int, float] = field(default_factory=dict)
    lrs: dict[int, float] = field(default_factory=dict)
    grad_norms: dict[int, float] = field(default_factory=dict)
    skipped: set[int] = field(default_factory=set)
    layers: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    factors: list[tuple[int, float]] = field(default_factory=list)
    incidents: list[events.Incident] = field(default_factory=list)
    alarms: list[events.Alarm] = field(default_factory=list)
    standing: list[events.Alarm] = field(default_factory=list)
    vocab_size: int = 0
    begun_from: str = ""
    ending: str = ""

    def session(self, step: int) -> Session | None:
        """The session that made ``step``."""
        found = [s for s in self.sessions if s.step < step]
        return found[-1] if found else None

    def factor(self, step: int) -> float:
        """The user's multiplier of the learning rate in ``step``."""
        return math.prod(factor for after, factor in self.factors if after < step)

    @property
    def last(self) -> int:
        """The last step made."""
        return max(self.losses, default=0)


def read(run: RunFolder) -> Record:
    """Read the log of a run.

    Raises:
        UserError: there is no log, or it has no steps.
    """
    reader = EventReader(run.events)
    log = reader.read_all()
    if reader.problem:
        raise UserError(reader.problem, "name another run")
    found = of_events(history.effective(log))
    if not found.incidents:  # a run that went back has left its incident behind
        found.incidents = [e for e in log if isinstance(e, events.Incident)]
    if not found.losses and not found.incidents:
        raise UserError(f"{run.events} has no step of training", "name a run that was trained here")
    return found


def of_events(log: Sequence[events.Event]) -> Record:
    """The record of an effective history."""
    found = Record()
    for event in log:
        take(found, event)
    found.standing = history.active_alarms(e for e in log if isinstance(e, events.Alarm))
    return found


def take(found: Record, event: events.Event) -> None:
    """Add one event to the record."""
    match event:
        case events.RunStarted():
            begun = Session(
                event.step, event.recipe, event.version, event.host, event.device,
                event.precision, event.processes,
            )  # fmt: skip
            found.sessions = [*(s for s in found.sessions if s.step < event.step), begun]
            found.vocab_size = event.vocab_size or found.vocab_size
            found.begun_from = event.begun_from or found.begun_from
            found.ending = ""
        case events.Step():
            found.losses[event.step] = event.loss
            if event.lr is not None:
                found.lrs[event.step] = event.lr
            if event.grad_norm is not None:
                found.grad_norms[event.step] = event.grad_norm
            if event.skipped:
                found.skipped.add(event.step)
        case events.Layers():
            if rows := _rows(event.stats):
                found.layers[event.step] = rows
        case events.Command(name="lr"):
            factor = _factor(event.argument)
            if factor is not None and "times the recipe" in event.result:
                found.factors.append((event.step, factor))
        case events.Incident():
            found.incidents.append(event)
        case events.Alarm(active=True):
            found.alarms.append(event)
        case events.RunEnded():
            found.ending = event.reason


def _rows(stats: Mapping[str, Any]) -> dict[str, list[float]]:
    """The statistics that are lists of numbers; a log may hold anything."""
    return {
        name: [float(value) for value in row]
        for name, row in stats.items()
        if isinstance(row, list) and all(isinstance(v, int | float) for v in row)
    }


def _factor(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def to_explain(found: Record, step: int = 0) -> Event | None:
    """What is to be explained; ``None`` if the run looks healthy.

    By default that is the run's worst incident, else what its losses show by the rules of the
    alarms, else a bad start, else an alarm of a condition that lasts.

    Raises:
        UserError: the run has not made the step that is asked for.
    """
    if step:
        return _asked(found, step)
    if found.incidents:
        # A divergence follows from what came before it: the first of its kind tells most.
        worst = min(found.incidents, key=_severity)
        return Event(worst.step, worst.kind, worst.message)
    return _jump(found) or _bad_start(found) or _lasting(found)


def _severity(incident: events.Incident) -> tuple[int, int]:
    order = ("non_finite", "divergence", "loss_spike")
    place = order.index(incident.kind) if incident.kind in order else len(order)
    return place, incident.step


def _asked(found: Record, step: int) -> Event:
    for incident in found.incidents:
        if incident.step == step:
            return Event(step, incident.kind, incident.message)
    for alarm in found.alarms:
        if alarm.step == step and alarm.kind in (*_LASTING, "frozen"):
            return Event(step, alarm.kind, alarm.message)
    if step not in found.losses:
        raise UserError(
            f"there is no step {step} in its log, which ends at step {found.last}",
            f"name another step, such as {_nearest(found, step)}",
        )
    loss = found.losses[step]
    kind = "asked" if math.isfinite(loss) else "non_finite"
    return Event(step, kind, f"loss {loss:.6g}")


def _nearest(found: Record, step: int) -> int:
    """The nearest step with a loss; not every log has every step, and some count from 0."""
    return min((s for s in found.losses if s), key=lambda s: abs(s - step), default=1)


def _jump(found: Record) -> Event | None:
    """A loss that is not finite, a divergence or the worst spike, for logs without incidents."""
    alarms, worst = Alarms(vocab_size=0), 0.0
    diverged: Event | None = None
    spike: Event | None = None
    for step, loss in sorted(found.losses.items()):
        if not math.isfinite(loss):
            return Event(step, "non_finite", f"loss {loss:.6g}")
        if alarms.incident(loss) == "divergence":
            diverged = diverged or Event(step, "divergence", f"loss {loss:.6g}")
        if alarms.is_spike(loss) and (rise := loss - alarms.usual) > worst:
            worst, spike = rise, Event(step, "loss_spike", f"loss {loss:.6g}")
        alarms.update(
            events.Step(step=step, loss=loss, lr=None, grad_norm=None, tokens=0, tokens_per_s=None)
        )
    return diverged or spike


def _bad_start(found: Record) -> Event | None:
    first = found.losses.get(1)
    if first is None or found.vocab_size < 2 or first < math.log(found.vocab_size) + BAD_START:
        return None
    return Event(
        1, "bad_start",
        f"the first loss is {first:.3g}; a model that knows nothing has ln(vocabulary) = "
        f"{math.log(found.vocab_size):.3g}",
    )  # fmt: skip


def _lasting(found: Record) -> Event | None:
    for alarm in found.alarms:
        if alarm.kind in _LASTING and alarm.step in found.losses:
            return Event(alarm.step, alarm.kind, alarm.message)
    if frozen := _frozen(found):
        return frozen
    # Of a loop whose learning rate is not known.
    stands = [Event(a.step, a.kind, a.message) for a in found.alarms if a.kind == "frozen"]
    return stands[0] if stands else None


def _frozen(found: Record) -> Event | None:
    """A layer whose matrices do not change at all although the learning rate is not zero."""
    for step, rows in sorted(found.layers.items()):
        still = [layer for layer, ratio in enumerate(rows.get("update_ratio", ()))
                 if ratio == -math.inf]  # fmt: skip
        if still and found.lrs.get(step, 0.0) > 0 and step not in found.skipped:
            return Event(step, "frozen", f"the matrices of layer {still[0]} do not change at all")
    return None
