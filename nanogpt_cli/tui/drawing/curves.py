"""Curves of several runs for a picture: one line for runs that differ in the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.tui.drawing import heat, traces
from nanogpt_cli.tui.state import scalars
from nanogpt_cli.tui.state.history import METRICS, numbers
from nanogpt_cli.tui.state.recipes import differing, flat, short
from nanogpt_cli.tui.state.series import Floats
from nanogpt_cli.tui.state.view import RunView

EVALUATED: Final = ("val_loss", "bits_per_byte")
OURS: Final = (*METRICS, *EVALUATED)
LAYERS: Final = "layers/"  # begins the name of a statistic, where a metric has the same
AXES: Final = {"step": "optimizer step", "tokens": "tokens", "time": "training time"}
BANDS: Final = {
    "range": "; bands reach from the lowest to the highest run",
    "sd": "; bands are ± one standard deviation",
    "none": "",
}
# Keys that say which run it is and not what it does.
SEED: Final = "run.seed"
_IDENTITY: Final = ("run.name", SEED)
_NOISY: Final = 0.9  # weight of the past in the moving average of metrics that jump


@dataclass(frozen=True)
class Wanted:
    """What to draw: see ``nanogpt runs plot --help``.

    Args:
        metric: a metric of steps or evaluations, a statistic of layers over depth,
            ``STATISTIC/LAYER`` over time, or a tag of another program.
        x: one of ``AXES``.
        smooth: weight of the past in an exponential moving average; ``None``: as the metric needs.
        band: one of ``BANDS``.
        at: the step whose statistic is drawn over depth; ``None``: the first one measured.
    """

    metric: str = "val_loss"
    x: str = "step"
    smooth: float | None = None
    band: str = "range"
    at: int | None = None
    log_x: bool = False
    log_y: bool = False
    title: str = ""
    tag: str = ""  # what the metric is of another program's log, see ``resolved``

    @property
    def statistic(self) -> str:
        """The statistic of layers that is wanted; "" if it is a metric of the whole run."""
        name, slash, _ = self.metric.removeprefix(LAYERS).partition("/")
        whole = self.metric == name and not slash and name in OURS
        return "" if whole or self.tag else name

    @property
    def layer(self) -> str:
        """The layer whose statistic is wanted over time; "" for all of them over depth."""
        return "" if self.tag else self.metric.removeprefix(LAYERS).partition("/")[2]

    @property
    def beta(self) -> float:
        """The smoothing that applies to the metric."""
        if self.metric not in METRICS:
            return 0.0
        noisy = _NOISY if self.metric in traces.SMOOTHED else 0.0
        return noisy if self.smooth is None else self.smooth


@dataclass(frozen=True)
class Curve:
    """One line: the mean over ``runs`` at ``x``, with the edges of its band.

    ``steps`` are those at which
    a statistic over depth was sampled; ``theory`` has the values expected before the first step,
    one for each x or one for all.
    """

    label: str
    runs: tuple[str, ...]
    x: Floats
    y: Floats
    low: Floats
    high: Floats
    diverged: bool = False
    steps: tuple[int, ...] = ()
    theory: tuple[float, ...] = ()


def known_metrics(views: Sequence[RunView]) -> list[str]:
    """Every metric of which at least one run holds a value."""
    steps = [m for m in METRICS if any(v.steps.measured(m).any() for v in views)]
    evals = [m for m in EVALUATED if any(np.isfinite(v.evals[m]).any() for v in views)]
    layers = heat.order(list({name for view in views for name in view.layers.names()}))
    ours = [*evals, *steps, *(LAYERS * (name in METRICS) + name for name in layers)]
    return [*ours, *scalars.names(_tags(views), OURS)]


def _tags(views: Sequence[RunView]) -> set[str]:
    return {tag for view in views for tag in view.scalars.tags()}


def resolved(views: Sequence[RunView], wanted: Wanted) -> Wanted:
    """What is wanted, with the tag that its metric is if it is one that these runs hold."""
    return replace(wanted, tag=scalars.tag_of(wanted.metric, _tags(views), OURS))


def curves(views: Sequence[RunView], wanted: Wanted) -> list[Curve]:
    """The curves to draw, in the order of the runs; runs without the metric are left out.

    Raises:
        UserError: no run holds the metric.
    """
    _check(views, wanted)
    found = [(view, curve) for view in views if len((curve := _curve(view, wanted)).x)]
    if not found:
        raise UserError(
            f"nothing to draw: no run holds a finite value of {wanted.metric}",
            f"metrics they hold: {_listed(known_metrics(views)) or 'none'}",
        )
    parts = groups([view for view, _ in found])
    labels = _names([[found[i][0] for i in group] for group in parts])
    return [
        _joined(label, [found[i][1] for i in group], wanted)
        for label, group in zip(labels, parts, strict=True)
    ]


def _check(views: Sequence[RunView], wanted: Wanted) -> None:
    """Refuse a metric that no run holds, naming those that they do."""
    known = known_metrics(views)
    name, layer = wanted.statistic, wanted.layer
    if wanted.smooth and wanted.metric not in METRICS:
        raise UserError(
            f"--smooth is for metrics of every step, and {wanted.metric} is not one", "leave it out"
        )
    if wanted.at is not None and (not name or layer):
        raise UserError(
            f"--at chooses a step of a statistic over depth, and {wanted.metric} is not one",
            "leave it out, or name one: --metric resid_rms",
        )
    if wanted.tag or (not name and wanted.metric in known):
        return
    if name and any(name in view.layers.names() for view in views):
        count = max(view.layers.values(name).shape[1] for view in views)
        whole = layer.isdecimal() and layer.isascii() and len(layer) < 9
        if layer and not (whole and int(layer) < count):
            raise UserError(
                f"--metric {wanted.metric}: {layer!r} is not a layer",
                f"layers of {name}: 0 to {count - 1}",
            )
        return
    held = f"metrics of these runs: {_listed(known) or 'none yet'}"
    if not name:
        raise UserError(f"nothing to draw: no run holds a value of {wanted.metric} yet", held)
    close = nearest(wanted.metric, known)
    hint = f"did you mean {close!r}? {held}" if close else held
    raise UserError(f"--metric {wanted.metric}: no run holds such a metric", hint)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:40]) + (", …" if len(names) > 40 else "")


def _curve(view: RunView, wanted: Wanted) -> Curve:
    """What one run holds of a metric; finite values only."""
    name, layer = wanted.statistic or wanted.metric, wanted.layer
    steps: tuple[int, ...] = ()
    theory = numbers(view.expected.get(wanted.statistic, []))
    if wanted.statistic and not layer:
        at, values = view.layers.steps(name), view.layers.values(name)
        if not len(at):
            at, values = np.zeros(1), np.empty((1, 0), np.float32)
        row = 0 if wanted.at is None else int(np.abs(at - wanted.at).argmin())
        x, y = np.arange(values.shape[1], dtype=float), values[row]
        steps = (int(at[row]),)
    elif layer:
        at, values, n = view.layers.steps(name), view.layers.values(name), int(layer)
        x = np.array([view.steps.at(wanted.x, step) for step in at])
        y = values[:, n] if n < values.shape[1] else np.full(len(x), np.nan)
        theory = theory[n : n + 1]
    elif wanted.tag:
        x, y = view.scalar_axis(wanted.tag, wanted.x), view.scalars.values(wanted.tag)
    elif name in EVALUATED:
        x, y = traces.eval_axis(view, wanted.x), view.evals[name]
    else:
        known = view.steps.measured(name)
        y = view.steps.smooth(name, wanted.beta) if wanted.beta else view.steps[name]
        # The average goes on through steps that were not finite; there the curve has a gap.
        y = np.where(np.isfinite(view.steps[name]), y, np.nan)
        x, y = view.steps[wanted.x][known], y[known]
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    expected = tuple(map(float, theory)) if np.isfinite(theory).all() else ()
    return Curve(view.name, (view.name,), x, y, y, y, view.diverged, steps, expected)


def groups(views: Sequence[RunView]) -> list[list[int]]:
    """Indices of the runs that differ in name and seed alone; a diverged run stands alone."""
    found: dict[Any, list[int]] = {}
    for index, view in enumerate(views):
        recipe = _recipe(view)
        alone = view.diverged or not recipe
        key: Any = index if alone else tuple(sorted((k, repr(v)) for k, v in recipe.items()))
        found.setdefault(key, []).append(index)
    return list(found.values())


def _recipe(view: RunView) -> dict[str, Any]:
    recipe = dict(flat(view.started.recipe)) if view.started else {}
    return {key: value for key, value in recipe.items() if key not in _IDENTITY}


def _names(groups: Sequence[Sequence[RunView]]) -> list[str]:
    """Labels of the curves: what the names of their runs have in common, made distinct."""
    labels = []
    for views in groups:
        names = [view.name for view in views]
        common = names[0] if len(names) == 1 else _common(names)
        labels.append(common)
    if "" in labels or len(set(labels)) < len(labels):
        rows = differing([_recipe(views[0]) for views in groups])
        for n, views in enumerate(groups):
            told = ", ".join(f"{key}={short(values[n])}" for key, values in rows[:3])
            labels[n] = " ".join(filter(None, (labels[n] or views[0].name, told)))
    for n, views in enumerate(groups):
        seeds = {repr(dict(flat(view.started.recipe)).get(SEED)) for view in views if view.started}
        noun = "seeds" if len(seeds) == len(views) else "runs"
        labels[n] += f" ({len(views)} {noun})" if len(views) > 1 else ""
        labels[n] += " (diverged)" if views[0].diverged else ""
    return labels


def _common(names: Sequence[str]) -> str:
    """What names begin with in common, without the sign that separated the rest."""
    low, high = min(names), max(names)
    same = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:same].rstrip("-_. ")


def _joined(label: str, parts: Sequence[Curve], wanted: Wanted) -> Curve:
    """The mean and the band over several runs, where all of them have values.

    They are taken at the positions of the first run; the others are interpolated linearly, which
    changes nothing where they were measured at the same ones.
    """
    first = parts[0]
    if len(parts) == 1:
        return replace(first, label=label)
    low, high = max(p.x[0] for p in parts), min(p.x[-1] for p in parts)
    x = first.x[(first.x >= low) & (first.x <= high)]
    values = np.stack([np.interp(x, part.x, part.y) for part in parts])
    mean = values.mean(0)
    spread = values.std(0, ddof=1)
    edges = {"range": (values.min(0), values.max(0)), "sd": (mean - spread, mean + spread)}
    bottom, top = edges.get(wanted.band, (mean, mean))
    runs = tuple(name for part in parts for name in part.runs)
    steps = tuple(sorted({step for part in parts for step in part.steps}))
    return replace(first, label=label, runs=runs, x=x, y=mean, low=bottom, high=top, steps=steps)
