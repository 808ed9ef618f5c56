"""RunView: fold a run's events into what a dashboard shows. Knows no terminal and no clock."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from nanogpt_cli import events
from nanogpt_cli.tui import stepblocks
from nanogpt_cli.tui.history import LayerHistory, Steps
from nanogpt_cli.tui.series import Columns, Floats

T = TypeVar("T", bound=events.Event)
SHORT = 8192  # bytes of steps up to which line by line is faster
MOST_ROWS = 1000  # samples, alarms, notes, ... kept of each kind


class RunView:
    """Everything known of one run.

    ``fold`` takes one event, ``fold_many`` a batch in which a run of steps may still be undecoded
    text (see ``EventReader.read_blocks``); both give the same view.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.started: events.RunStarted | None = None
        self.ended: events.RunEnded | None = None
        self.steps = Steps()
        self.evals = Columns(step="f8", tokens="f8", time="f8", val_loss="f8", bits_per_byte="f8")
        self.layers = LayerHistory()
        self.last_step: events.Step | None = None
        self.last_eval: events.Eval | None = None
        self.last_layers: events.Layers | None = None
        self.samples: deque[events.Sample] = deque(maxlen=MOST_ROWS)
        self.alarms: deque[events.Alarm] = deque(maxlen=MOST_ROWS)
        self.happenings: deque[events.Event] = deque(maxlen=MOST_ROWS)
        self.doing = ""
        self.paused = False
        self.last_time = 0.0
        self.version = 0  # grows with every change: nothing new, nothing to draw
        self.non_finite = 0
        self.bad_lines = 0
        self.resumes = 0

    def fold_many(self, batch: Iterable[events.Event | bytes]) -> None:
        """Fold a batch; consecutive steps go in together."""
        steps: list[events.Step] = []
        for item in batch:
            if isinstance(item, events.Step):
                if events.sound(item):
                    steps.append(item)
                else:
                    self.bad_lines += 1
                continue
            self._fold_steps(steps)
            steps = []
            if isinstance(item, bytes):
                self._fold_block(item)
            else:
                self.fold(item)
        self._fold_steps(steps)

    def fold(self, event: events.Event) -> None:
        """Take in one event; an unusable one changes nothing."""
        if isinstance(event, events.Step):
            self.fold_many([event])
            return
        self.version += 1
        if not events.sound(event):
            self.bad_lines += 1
            return
        self.steps.tick(event.time)
        self.last_time = max(self.last_time, event.time)
        handler = getattr(self, f"_on_{event.type}", None)
        if handler is not None:
            handler(event)

    def _fold_block(self, block: bytes) -> None:
        table = stepblocks.parse(block) if len(block) > SHORT else None
        if table is not None:
            with contextlib.suppress(ValueError):  # else that line is counted below
                last = events.decode(block[block.rfind(b"\n", 0, -1) + 1 :])
                assert isinstance(last, events.Step)
                self._take_table(table, last)
                return
        found: list[events.Event] = []
        for line in block.splitlines():
            try:
                event = events.decode(line)
            except ValueError:
                self.bad_lines += 1
                continue
            if event is not None:
                found.append(event)
        self.fold_many(found)

    def _fold_steps(self, steps: list[events.Step]) -> None:
        if steps:
            self._take_table(stepblocks.from_events(steps), steps[-1])

    def _take_table(self, table: dict[str, Floats], last: events.Step) -> None:
        self.version += 1
        self.steps.extend(table)
        self.non_finite += int((~np.isfinite(table["loss"])).sum())
        self.last_step, self.doing = last, ""
        self.ended = None
        self.last_time = max(self.last_time, last.time)

    def _on_run_started(self, event: events.RunStarted) -> None:
        self.started, self.ended, self.paused, self.doing = event, None, False, "starting"
        self.name = self.name or event.name
        after = event.step
        self.steps.flops_per_token = _number(event.flops_per_token)
        self.steps.resume(after)
        self.evals.truncate(int(np.searchsorted(self.evals["step"], after, side="right")))
        self.layers.resume(after)
        self.samples = _until(self.samples, after)
        self.alarms = _until(self.alarms, after)
        if after > 0:
            self.resumes += 1
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
        self.last_layers = event

    def _on_sample(self, event: events.Sample) -> None:
        self.samples.append(event)

    def _on_alarm(self, event: events.Alarm) -> None:
        self.alarms.append(event)
        self.happenings.append(event)

    def _on_command(self, event: events.Command) -> None:
        if event.name in ("pause", "resume"):
            self.paused = event.name == "pause"
        self.happenings.append(event)

    def _on_checkpoint(self, event: events.Checkpoint) -> None:
        self.doing = ""
        self.happenings.append(event)

    def _on_incident(self, event: events.Incident) -> None:
        self.happenings.append(event)

    def _on_note(self, event: events.Note) -> None:
        self.happenings.append(event)

    def _on_heartbeat(self, event: events.Heartbeat) -> None:
        self.doing = event.doing

    def _on_run_ended(self, event: events.RunEnded) -> None:
        self.ended, self.doing = event, ""
        self.happenings.append(event)

    @property
    def step(self) -> int:
        """The latest step."""
        return self.last_step.step if self.last_step else self.started.step if self.started else 0

    @property
    def max_steps(self) -> int:
        """The planned number of steps, 0 when unknown."""
        return self.started.max_steps if self.started else 0

    @property
    def eta(self) -> float | None:
        """Seconds until the last planned step at the present speed."""
        pace = self.seconds_per_step
        if self.ended or not self.max_steps or not math.isfinite(pace):
            return None
        return max(0, self.max_steps - self.step) * pace

    @property
    def seconds_per_step(self) -> float:
        """Recent wall time per step, evaluations and the like included."""
        times, steps = self.steps["time"][-200:], self.steps["step"][-200:]
        if len(times) < 2:
            return self.steps.recent("step_s")
        return float((times[-1] - times[0]) / (steps[-1] - steps[0]))

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B); needs the peak."""
        if not self.started or not self.started.peak_flops or not len(self.steps):
            return None
        per_s = self.steps.recent("tokens_per_s") * self.started.flops_per_token
        return per_s / self.started.peak_flops if per_s > 0 else None

    @property
    def best_val_loss(self) -> float | None:
        """The lowest validation loss so far."""
        values = self.evals["val_loss"]
        values = values[np.isfinite(values)]
        return float(values.min()) if len(values) else None

    @property
    def active_alarms(self) -> list[events.Alarm]:
        """Alarms whose latest word is that they hold, newest last."""
        latest: dict[tuple[str, int | None], events.Alarm] = {}
        for alarm in self.alarms:
            key = (alarm.kind, alarm.layer)
            latest.pop(key, None)
            latest[key] = alarm
        return [alarm for alarm in latest.values() if alarm.active and alarm.severity != "info"]

    @property
    def expected(self) -> dict[str, list[float]]:
        """Statistic -> value per layer that theory expects at initialisation."""
        raw = self.started.expected if self.started else {}
        return {k: list(v) for k, v in raw.items() if isinstance(v, (list, tuple))}


def _until(items: deque[T], after: int) -> deque[T]:
    return deque((e for e in items if getattr(e, "step", 0) <= after), maxlen=items.maxlen)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
