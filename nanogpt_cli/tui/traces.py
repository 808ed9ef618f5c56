"""The traces that the charts of a run show."""

from __future__ import annotations

from nanogpt_cli import units
from nanogpt_cli.tui.history import SMOOTHING
from nanogpt_cli.tui.plot import Trace
from nanogpt_cli.tui.series import Floats
from nanogpt_cli.tui.view import RunView

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


def smoothed(view: RunView, metric: str, beta: float) -> Floats:
    """A metric's moving average, or the metric itself if it is not to be smoothed."""
    if beta == 0 or metric not in SMOOTHED:
        return view.steps[metric]
    return view.steps.smooth(metric, beta)


def loss_traces(view: RunView, axis: str, level: int) -> list[Trace]:
    """Traces of the loss: its envelope, its moving average, and validation points on top."""
    x, beta = view.steps[axis], SMOOTHING[level]
    traces = []
    if beta:
        traces.append(Trace("raw", x, view.steps["loss"], "raw", "band"))
    traces.append(Trace("train", x, smoothed(view, "loss", beta), "train"))
    if len(view.evals):
        points = Trace("val", eval_axis(view, axis), view.evals["val_loss"], "val", "points")
        traces.append(points)
    return traces


def metric_traces(
    view: RunView, metric: str, axis: str, level: int, color: str = "train"
) -> list[Trace]:
    """Traces of one metric where it is known: its envelope and moving average, or just itself."""
    known, beta = view.steps.measured(metric), SMOOTHING[level]
    if not known.any():
        return []
    x, y = view.steps[axis][known], view.steps[metric][known]
    if not beta or metric not in SMOOTHED:
        return [Trace(SHORT[metric], x, y, color)]
    return [
        Trace("raw", x, y, "raw", "band"),
        Trace("smooth", x, smoothed(view, metric, beta)[known], color),
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
    values = view.steps[metric][view.steps.measured(metric)]
    if not len(values):
        return "–" if len(view.steps) else ""
    if metric == "tokens_per_s":
        return units.si(view.steps.recent(metric))
    return units.number(float(values[-1]))
