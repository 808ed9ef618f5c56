"""The picture of the curves of several runs, with notes that say what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nanogpt_cli import charts, units
from nanogpt_cli.tui.drawing import heat, traces
from nanogpt_cli.tui.drawing.curves import AXES, BANDS, Curve, Wanted

_FEW: Final = 40  # up to this many points of a curve are marked one by one
THEORY: Final = 0.1  # relative half width of the band, as on the Layers page
_LABELS: Final = {**traces.LABELS, "loss": "training loss", "bits_per_byte": "bits per byte"}
_UNITS: Final = {"loss": " (nats per token)", "val_loss": " (nats per token)"}


def figure(found: Sequence[Curve], wanted: Wanted) -> charts.Figure:
    """The picture of curves."""
    metric, layer = wanted.metric, wanted.layer
    statistic = heat.statistic(wanted.statistic) if wanted.statistic else None
    depth = statistic is not None and not layer
    named = _LABELS.get(metric, wanted.tag) + _UNITS.get(metric, "")
    y_label = statistic.label if statistic else named
    y_label += f", layer {layer}" if layer else ""
    marks = _theory(found, depth)
    for colour, curve in enumerate(found):
        fits = not curve.diverged or all(c.diverged for c in found)
        if len(curve.runs) > 1 and wanted.band != "none":
            x, low, high = list(curve.x), list(curve.low), list(curve.high)
            marks.append(charts.Mark("", x, low, "band", colour, high))
        kind: charts.Kind = "dotted line" if len(curve.x) <= _FEW else "line"
        marks.append(
            charts.Mark(curve.label, list(curve.x), list(curve.y), kind, colour, fits=fits)
        )
    log_y = wanted.log_y or bool(statistic and statistic.log and depth)
    panel = charts.Panel(
        "", marks, "block" if depth else AXES[wanted.x], y_label, wanted.log_x, log_y,
        "block" if depth else "time" if wanted.x == "time" else "",
    )  # fmt: skip
    title = wanted.title or (f"{y_label} by depth" if depth else "")
    return charts.Figure(title, [panel], 1, _notes(found, wanted, any(m.colour < 0 for m in marks)))


def _theory(found: Sequence[Curve], depth: bool) -> list[charts.Mark]:
    """What theory expects before the first step, once for all curves that share it."""
    marks: list[charts.Mark] = []
    for n, theory in enumerate(dict.fromkeys(c.theory for c in found if c.theory)):
        ends = [float(found[0].x[0]), max(float(c.x[-1]) for c in found)]
        x = [float(i) for i in range(len(theory))] if depth else ends
        y = list(theory) if depth else [theory[0]] * 2
        label = "theory at the start" if n == 0 else ""
        low, high = [v * (1 - THEORY) for v in y], [v * (1 + THEORY) for v in y]
        marks += [charts.Mark("", x, low, "band", -1, high), charts.Mark(label, x, y, "dash", -1)]
    return marks


def _notes(found: Sequence[Curve], wanted: Wanted, theory: bool) -> list[str]:
    """What a reader has to know to read the picture."""
    notes = []
    if any(len(curve.runs) > 1 for curve in found):
        notes.append(f"Lines are means over runs of one recipe{BANDS[wanted.band]}.")
    if beta := wanted.beta:
        notes.append(f"Smoothed: exponential moving average, weight of the past {beta:g}.")
    steps = sorted({step for curve in found for step in curve.steps})
    if steps:
        few = ", ".join(f"{step:,}" for step in steps[:4]) + (", …" if len(steps) > 4 else "")
        notes.append(f"Measured at step {few}.")
    if theory:
        notes.append(f"Grey: what theory expects before the first step, ±{units.percent(THEORY)}.")
    if 0 < sum(curve.diverged for curve in found) < len(found):
        notes.append("The y axis fits the runs that did not diverge.")
    return notes
