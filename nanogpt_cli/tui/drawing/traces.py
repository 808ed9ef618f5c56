"""The traces that the charts of a run show."""

from __future__ import annotations

from nanogpt_cli import units
from nanogpt_cli.tui.drawing.plot import Trace
from nanogpt_cli.tui.state.history import SMOOTHING
from nanogpt_cli.tui.state.series import Floats
from nanogpt_cli.tui.state.view import RunView

LABELS = {
    "loss": "loss",
    "val_loss": "validation loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens/s",
    "step_s": "seconds per step",
}
SHORT = {**LABELS, "lr": "lr", "grad_norm": "norm"}
SMOOTHED = ("loss", "grad_norm", "tokens_per_s", "step_s")
Mark = tuple[float, str, str]


def eval_axis(view: RunView, axis: str) -> Floats:
    """The x values of every evaluation."""
    if axis == "flops":
        return view.evals["tokens"] * view.steps.flops_per_token
    return view.evals[axis]


def trace(
    view: RunView, metric: str, axis: str, beta: float, name: str, color: str, kind: str = "line"
) -> Trace:
    """One metric where it is known, as a moving average if ``beta`` is not 0 and it is noisy."""
    steps = view.steps
    smooth = beta != 0 and metric in SMOOTHED
    columns, column = (steps.smoothed(metric, beta), "ema") if smooth else (steps.columns, metric)
    x, y = steps[axis], columns[column]
    if steps.all_measured(metric):
        return Trace(name, x, y, color, kind, extremes=columns.extremes(column))
    known = steps.measured(metric)
    return Trace(name, x[known], y[known], color, kind)


def loss_traces(view: RunView, axis: str, level: int) -> list[Trace]:
    """Traces of the loss: its envelope, its moving average, and validation points on top."""
    beta = SMOOTHING[level]
    traces = [trace(view, "loss", axis, 0, "raw", "raw", "band")] if beta else []
    traces.append(trace(view, "loss", axis, beta, "train", "train"))
    if len(view.evals):
        points = Trace("val", eval_axis(view, axis), view.evals["val_loss"], "val", "points")
        traces.append(points)
    return traces


def metric_traces(
    view: RunView, metric: str, axis: str, level: int, color: str = "train"
) -> list[Trace]:
    """Traces of one metric where it is known: its envelope and moving average, or just itself."""
    beta = SMOOTHING[level]
    if view.steps.latest(metric) is None:
        return []
    if not beta or metric not in SMOOTHED:
        return [trace(view, metric, axis, 0, SHORT[metric], color)]
    return [
        trace(view, metric, axis, 0, "raw", "raw", "band"),
        trace(view, metric, axis, beta, "smooth", color),
    ]


def alarm_marks(view: RunView, axis: str, most: int = 40) -> list[Mark]:
    """Marks on the top edge where alarms were raised."""
    found: list[Mark] = []
    for alarm in list(view.alarms)[-most:]:
        if alarm.severity != "info":
            key = "error" if alarm.severity == "error" else "warning"
            found.append((view.steps.at(axis, alarm.step), "▲", key))
    return found


def smoothing_note(level: int) -> str:
    """The current smoothing, for a title: an average with weights βᵏ spans 1/(1 − β) steps."""
    beta = SMOOTHING[level]
    return f"smoothed over {1 / (1 - beta):.3g} steps" if beta else "not smoothed"


def axis_note(axis: str, log: bool) -> str:
    """The current x axis, for a title."""
    names = {"step": "by step", "tokens": "by tokens", "time": "by time", "flops": "by FLOPs"}
    return f"{names[axis]}, log scale" if log else names[axis]


def latest(view: RunView, metric: str) -> str:
    """The newest value of a metric with its unit."""
    value = view.steps.latest(metric)
    if value is None:
        return "–" if len(view.steps) else ""
    if metric == "tokens_per_s":
        return units.si(view.steps.recent(metric))
    return units.number(value)
