"""RunView: folds a run's events into what a dashboard shows, without a terminal or a clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from nanogpt_cli.printable import printable
from nanogpt_cli.run import events, history
from nanogpt_cli.tui.state import stepblocks
from nanogpt_cli.tui.state.history import LayerHistory, Steps
from nanogpt_cli.tui.state.machine import MachineHistory
from nanogpt_cli.tui.state.scalars import Scalars
from nanogpt_cli.tui.state.series import Columns, Floats

T = TypeVar("T", bound=events.Event)
MOST_ROWS = 1000  # samples, alarms, notes, ... kept of each kind


class RunView:
    """Everything that is known about one run.

    ``fold`` takes one event, ``fold_many`` a batch in which consecutive steps may be undecoded text
    (see ``EventReader.read_blocks``); both give the same view.

    A log may contain anything, so its texts are made printable when they are folded, unless
    ``exact`` keeps them for a program that does not draw.
    """

    def __init__(self, name: str = "", *, exact: bool = False) -> None:
        self.exact = exact
        self.name = self._shown(name)
        self.started: events.RunStarted | None = None
        self.imported: events.RunImported | None = None
        self.ended: events.RunEnded | None = None
        self.steps = Steps()
        self.evals = Columns(step="f8", tokens="f8", time="f8", val_loss="f8", bits_per_byte="f8")
        self.layers = LayerHistory()
        self.scalars = Scalars()
        self.machine = MachineHistory()
        self.last_step: events.Step | None = None
        self.last_eval: events.Eval | None = None
        self.last_layers: events.Layers | None = None
        self.samples: deque[events.Sample] = deque(maxlen=MOST_ROWS)
        self.alarms: deque[events.Alarm] = deque(maxlen=MOST_ROWS)
        self.happenings: deque[events.Event] = deque(maxlen=MOST_ROWS)
        self.doing = ""
        self.paused = False
        self.stopping = False
        self.last_time = 0.0
        self.version = 0  # increases with every change, so that unchanged views are not redrawn
        self._non_finite: set[int] = set()
        self._worked = 0.0  # seconds of the sessions before this one
        self.bad_lines = 0
        self.resumes = 0

    def _shown(self, name: str) -> str:
        return name if self.exact else printable(name, keep="")

    def fold_many(self, batch: Iterable[events.Event | bytes]) -> None:
        """Fold a batch; consecutive steps are folded together."""
        self.fold_parsed(stepblocks.parsed(batch))

    def fold_parsed(self, found: stepblocks.Parsed) -> None:
        """Fold a batch that is parsed already, in time that grows with the new steps only."""
        self.bad_lines += found.bad_lines
        for item in found.items:
            if isinstance(item, stepblocks.Table):
                self._take_table(item.columns, item.last)
            else:
                self.fold(item)

    def fold(self, event: events.Event) -> None:
        """Fold one event; an invalid one changes nothing but a counter."""
        if isinstance(event, events.Step):
            self.fold_many([event])
            return
        self.version += 1
        if not events.sound(event):
            self.bad_lines += 1
            return
        event = event if self.exact else harmless(event)
        # Scalars may stand after later steps, and a sample of the machine is older than its line.
        if not isinstance(event, events.Scalars | events.System):
            self.steps.tick(event.time)
        self.last_time = max(self.last_time, event.time)
        handler = getattr(self, f"_on_{event.type}", None)
        if handler is not None:
            handler(event)

    def _take_table(self, table: dict[str, Floats], last: events.Step) -> None:
        self.version += 1
        self.steps.extend(table)
        self._non_finite.update(map(int, table["step"][~np.isfinite(table["loss"])]))
        self.last_step, self.doing = last, ""
        self.ended = None
        self.last_time = max(self.last_time, last.time)

    def _on_run_started(self, event: events.RunStarted) -> None:
        self._worked = self.seconds if self.started and event.step else 0.0
        self._non_finite = {step for step in self._non_finite if step <= event.step}
        self.started, self.ended, self.doing = event, None, "starting"
        self.paused = self.stopping = False
        self.name = self.name or self._shown(event.name)
        after = event.step
        self.steps.flops_per_token = _number(event.flops_per_token)
        self.steps.resume(after)
        self.evals.truncate(int(np.searchsorted(self.evals["step"], after, side="right")))
        self.layers.resume(after)
        self.scalars.resume(after)
        self.machine.resume(after)
        self.samples = _until(self.samples, after)
        self.alarms = _until(self.alarms, after)
        if after > 0:
            self.resumes += 1
            self.happenings.append(event)

    def _on_run_imported(self, event: events.RunImported) -> None:
        self.imported = event
        self.happenings.append(event)

    def _on_eval(self, event: events.Eval) -> None:
        last = self.evals["step"][-1] if len(self.evals) else -1
        if event.step > last:
            row = {
                "step": float(event.step),
                "tokens": self.steps.at("tokens", event.step),
                "time": self.steps.at("time", event.step),
                "val_loss": _number(event.val_loss),
                "bits_per_byte": _number(event.bits_per_byte),
            }
            self.evals.extend({name: np.array([value]) for name, value in row.items()})
        self.last_eval, self.doing = event, ""
        self.happenings.append(event)

    def _on_layers(self, event: events.Layers) -> None:
        self.layers.append(event.step, event.stats, event.histograms)
        if event.stats:
            self.last_layers = event

    def _on_histograms(self, event: events.Histograms) -> None:
        self.layers.append(event.step, {}, event.histograms)

    def _on_scalars(self, event: events.Scalars) -> None:
        self.scalars.append(event.step, event.time, event.values)
        self.doing = ""

    def scalar_axis(self, tag: str, axis: str) -> Floats:
        """The x values of a tag; without steps of ours, time is that since its beginning."""
        steps = self.scalars.steps(tag)
        if axis == "step":
            return steps
        if len(self.steps):
            return np.interp(steps, self.steps["step"], self.steps[axis])
        return self.scalars.times(tag) if axis == "time" else np.full(len(steps), math.nan)

    def _on_system(self, event: events.System) -> None:
        began = self.machine["clock"][0] if len(self.machine) else event.time
        alone = self.started is None and not len(self.steps)  # a machine without a run
        self.machine.append(event, event.time - began if alone else self.steps.moment(event.time))

    def _on_sample(self, event: events.Sample) -> None:
        self.samples.append(event)

    def _on_alarm(self, event: events.Alarm) -> None:
        self.alarms.append(event)
        self.happenings.append(event)

    def _on_command(self, event: events.Command) -> None:
        if event.name in ("pause", "resume"):
            self.paused = event.name == "pause"
        self.stopping = self.stopping or event.name == "stop"
        self.happenings.append(event)

    def _on_checkpoint(self, event: events.Checkpoint) -> None:
        self.doing = ""
        self.happenings.append(event)

    def _on_incident(self, event: events.Incident) -> None:
        if event.kind == "non_finite":
            self._non_finite.add(event.step)
        self.happenings.append(event)

    def _on_note(self, event: events.Note) -> None:
        self.happenings.append(event)

    def _on_heartbeat(self, event: events.Heartbeat) -> None:
        self.doing = event.doing

    def _on_run_ended(self, event: events.RunEnded) -> None:
        self.ended, self.doing = event, ""
        self.happenings.append(event)

    @property
    def non_finite(self) -> int:
        """Steps whose loss or gradient was NaN or infinite."""
        return len(self._non_finite)

    @property
    def seconds(self) -> float:
        """Seconds that the trainer has worked, over all sessions of the run."""
        if self.ended:
            return self._worked + self.ended.seconds
        if not self.started:  # the beginning of the log is lost
            return float(self.steps["time"][-1]) if len(self.steps) else 0.0
        return self._worked + max(0.0, self.last_time - self.started.time)

    @property
    def step(self) -> int:
        """The latest step."""
        if self.last_step:
            return self.last_step.step
        return max(self.started.step if self.started else 0, self.scalars.last_step())

    @property
    def has_steps(self) -> bool:
        """Whether any step was made."""
        return len(self.steps) > 0

    @property
    def pace(self) -> float:
        """Recent seconds per step, as measured by the trainer; 0 if unknown."""
        pace = self.steps.recent("step_s")
        return pace if pace == pace else 0.0

    @property
    def parameters(self) -> int:
        """Parameters of the model; 0 if unknown."""
        known = self.started or self.imported
        return known.parameters if known else 0

    @property
    def max_steps(self) -> int:
        """The planned number of steps; 0 if unknown."""
        return self.started.max_steps if self.started else 0

    @property
    def eta(self) -> float | None:
        """Seconds until the last planned step at the current speed."""
        pace = self.seconds_per_step
        if self.ended or not self.max_steps or not math.isfinite(pace):
            return None
        return max(0, self.max_steps - self.step) * pace

    @property
    def seconds_per_step(self) -> float:
        """Recent wall-clock seconds per step, including evaluations and the like."""
        times, steps = self.steps["time"][-200:], self.steps["step"][-200:]
        if len(times) < 2:
            return self.steps.recent("step_s")
        return float((times[-1] - times[0]) / (steps[-1] - steps[0]))

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B); ``None`` without a peak."""
        if not self.started or not self.started.peak_flops or not len(self.steps):
            return None
        peak = self.started.peak_flops * max(1, self.started.processes)
        per_s = self.steps.recent("tokens_per_s") * self.started.flops_per_token
        return per_s / peak if per_s > 0 else None

    @property
    def best_val_loss(self) -> float | None:
        """The lowest validation loss so far."""
        values = self.evals["val_loss"]
        values = values[np.isfinite(values)]
        return float(values.min()) if len(values) else None

    @property
    def active_alarms(self) -> list[events.Alarm]:
        """Alarms that were raised and not cleared since, newest last."""
        return history.active_alarms(self.alarms)

    @property
    def diverged(self) -> bool:
        """Whether the run ended as diverged or not finite, or its loss is diverging."""
        if self.ended and self.ended.reason in ("diverged", "non_finite"):
            return True
        return any(alarm.kind == "divergence" for alarm in self.active_alarms)

    @property
    def expected(self) -> dict[str, list[float]]:
        """Values per layer that theory expects at initialisation, by statistic."""
        raw = self.started.expected if self.started else {}
        return {k: list(v) for k, v in raw.items() if isinstance(v, (list, tuple))}


def harmless(event: T) -> T:
    """The event with all its texts made printable, including statistic names and recipe keys."""
    found = {name: _harmless(name, getattr(event, name)) for name in _TEXTS[event.type]}
    return replace(event, **found) if found else event


# Long rows of numbers, whose names alone are text.
_NUMBERS = ("stats", "histograms", "expected", "values")


def _harmless(name: str, value: Any) -> Any:
    if name in _NUMBERS:
        return {printable(key): row for key, row in value.items()}
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _harmless("", item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_harmless("", item) for item in value)
    return value


_TEXTS = {
    kind: [name for name, kinds in fields if {str, dict, tuple} & set(kinds)]
    for kind, fields in events.ALLOWED.items()
}


def _until(items: deque[T], after: int) -> deque[T]:
    return deque((e for e in items if getattr(e, "step", 0) <= after), maxlen=items.maxlen)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
