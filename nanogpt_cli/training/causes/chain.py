"""What happened before the loss jumped: which statistic of which layer left its band first.

Works on the log alone, or on statistics that a replay has measured at every step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nanogpt_cli.training.causes import bands
from nanogpt_cli.training.causes.bands import Departure
from nanogpt_cli.training.causes.record import Event, Record

# Steps, and observations of the layers, before the event that are looked at: of the latter twice
# what a band is made of. The trainer remembers as many, so an alarm and ``nanogpt why`` agree.
STEPS, OBSERVATIONS = 300, 48
LOSS, GRADIENT = "loss", "gradient norm"


@dataclass(frozen=True)
class _Watched:
    """How a statistic is judged.

    Attributes:
        words: what it is called.
        up, down: the directions that mean harm.
        log: judged by its logarithm, as sizes are that grow by factors.
        floor: half the narrowest band; for logarithms that of the logarithm.
        above, below: limits without any band, for a run that had no healthy steps.
    """

    words: str
    up: bool = True
    down: bool = False
    log: bool = False
    floor: float = 0.0
    above: float = math.inf
    below: float = -math.inf


_FACTOR = math.log(1.5)
# In the order of the chain: what comes first is the more likely origin where steps are equal.
WATCHED: dict[str, _Watched] = {
    "weight_rms": _Watched("weights", down=True, log=True, floor=_FACTOR),
    "update_ratio": _Watched("update over weight", floor=0.5, above=-0.5),
    "attn_logit_max": _Watched("largest attention logit", log=True, floor=_FACTOR, above=50.0),
    "attn_entropy": _Watched("attention entropy", up=False, down=True, floor=0.15, below=0.02),
    "preact_std": _Watched("MLP pre-activations", log=True, floor=_FACTOR, above=50.0),
    "dead": _Watched("silent MLP units", floor=0.2, above=0.5),
    "resid_rms": _Watched("residual stream", log=True, floor=_FACTOR, above=300.0),
    "resid_kurtosis": _Watched("kurtosis of the stream", log=True, floor=_FACTOR),
    "grad_norm": _Watched("gradient norm", log=True, floor=math.log(2.5)),
}
_GLOBAL: dict[str, _Watched] = {
    GRADIENT: _Watched(GRADIENT, log=True, floor=math.log(2.5)),
    LOSS: _Watched(LOSS, floor=0.2),
}
_ORDER = [*WATCHED, *_GLOBAL]


@dataclass(frozen=True)
class Link:
    """One statistic that left its band.

    Attributes:
        name: key of ``training.stats.NAMES``, or ``LOSS`` or ``GRADIENT``.
        layer: ``None`` for a value of the whole step.
        step: of the first value outside.
        value, usual: then, and what the band was around; ``usual`` is ``None`` where a limit was
            passed without a band.
    """

    name: str
    layer: int | None
    step: int
    value: float
    usual: float | None

    @property
    def words(self) -> str:
        """What it is called, with its layer."""
        known = WATCHED.get(self.name) or _GLOBAL.get(self.name)
        words = known.words if known else self.name
        return words if self.layer is None else f"{words}, layer {self.layer}"


@dataclass(frozen=True)
class Story:
    """What the statistics say.

    Attributes:
        onset: first step whose loss was above its band; the event's own step if none was.
        links: everything that left its band, the first one first.
        rows: statistic -> (layer or ``None``, points), for the chart of the chain.
        healthy: steps before ``onset`` with a usual loss.
        every: steps between two statistics of the layers; 0 where there are none.
    """

    onset: int
    links: tuple[Link, ...]
    rows: Mapping[str, tuple[int | None, tuple[tuple[int, float], ...]]]
    healthy: int
    every: int

    @property
    def first(self) -> Link | None:
        """What left its band first; ``None`` if nothing did."""
        return self.links[0] if self.links else None


def tell(record: Record, event: Event) -> Story:
    """Find what left its band before an event."""
    losses = _finite_first(sorted(record.losses.items()), event)
    found = _departed(losses, event.step, _GLOBAL[LOSS])
    onset = min(found.step, event.step) if found else event.step
    links = [Link(LOSS, None, found.step, found.value, found.usual)] if found else []
    norms = sorted(record.grad_norms.items())[-(10**6) :]
    if gone := _departed(norms, onset, _GLOBAL[GRADIENT]):
        links.append(Link(GRADIENT, None, gone.step, gone.value, gone.usual))
    links += _layer_links(record, onset)
    links.sort(key=lambda link: (link.step, _ORDER.index(link.name), -_size(link)))
    healthy = sum(1 for step, loss in losses if step < onset and math.isfinite(loss))
    return Story(onset, tuple(links), _rows(record, event, links), healthy, _every(record, onset))


def _finite_first(losses: list[tuple[int, float]], event: Event) -> list[tuple[int, float]]:
    """The losses up to the event; that of a step that ended the run is not in the log."""
    known = [(s, v) for s, v in losses if s <= event.step]
    if event.kind == "non_finite" and (not known or known[-1][0] < event.step):
        known.append((event.step, math.inf))
    return known


def _size(link: Link) -> float:
    """By which factor a value is off, for sorting."""
    if link.usual is None or not math.isfinite(link.value):
        return math.inf
    return abs(math.log((abs(link.value) + 1e-9) / (abs(link.usual) + 1e-9)))


def _departed(points: list[tuple[int, float]], until: int, how: _Watched) -> Departure | None:
    known = [(step, value) for step, value in points if step <= until][-STEPS:]
    if how.log:
        known = [(step, _log(value)) for step, value in known]
    found = bands.departure(known, until, upward=how.up, downward=how.down, floor=how.floor)
    if found is None or not how.log:
        return found
    return Departure(found.step, _exp(found.value), _exp(found.usual), found.sigmas)


def _log(value: float) -> float:
    return math.log(max(value, 1e-30)) if math.isfinite(value) else value


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0)) if math.isfinite(value) else value


def _layer_links(record: Record, onset: int) -> Iterator[Link]:
    """What left its band in each layer at or before the loss did.

    Layers are measured after the step whose loss it is, so what they were before counts first.
    """
    for name, how in WATCHED.items():
        for layer, every in _series(record, name).items():
            points = [point for point in every if point[0] <= onset]
            before = [point for point in points if point[0] < onset][-OBSERVATIONS:]
            found = _departed(before, onset, how) or _departed(points[-OBSERVATIONS:], onset, how)
            if found is not None:
                yield Link(name, layer, found.step, found.value, found.usual)
            elif passed := _beyond_limit(points, onset, how):
                yield Link(name, layer, passed[0], passed[1], None)


def _series(record: Record, name: str) -> dict[int, list[tuple[int, float]]]:
    """Layer -> points of a statistic."""
    found: dict[int, list[tuple[int, float]]] = {}
    for step, rows in sorted(record.layers.items()):
        for layer, value in enumerate(rows.get(name, ())):
            found.setdefault(layer, []).append((step, value))
    return found


def _beyond_limit(
    points: list[tuple[int, float]], onset: int, how: _Watched
) -> tuple[int, float] | None:
    """The first value of the last stretch beyond a fixed limit."""
    first = None
    for step, value in points:
        if step > max(onset, 1):
            break
        beyond = not how.below <= value <= how.above  # NaN is beyond
        first = (first or (step, value)) if beyond else None
    return first


def _every(record: Record, onset: int) -> int:
    steps = [step for step in sorted(record.layers) if step <= onset][-8:]
    return min((b - a for a, b in itertools.pairwise(steps)), default=0)


def _rows(
    record: Record, event: Event, links: list[Link]
) -> dict[str, tuple[int | None, tuple[tuple[int, float], ...]]]:
    """The chart's rows: the chain's usual members, and what left its band first."""
    wanted: dict[str, int | None] = {}
    if links and links[0].name in WATCHED:
        wanted[links[0].name] = links[0].layer
    for name in ("attn_logit_max", "attn_entropy"):
        layer = next((link.layer for link in links if link.name == name), None)
        wanted.setdefault(name, _extreme(record, name, event.step) if layer is None else layer)
    found: dict[str, tuple[int | None, tuple[tuple[int, float], ...]]] = {}
    for name in sorted(wanted, key=_ORDER.index):
        layer = wanted[name]
        points = _series(record, name).get(layer, []) if layer is not None else []
        if points:
            found[name] = layer, tuple(points)
    found[GRADIENT] = None, tuple(sorted(record.grad_norms.items()))
    found[LOSS] = None, tuple(sorted(record.losses.items()))
    return found


def _extreme(record: Record, name: str, step: int) -> int | None:
    """The layer whose value is worst at the last observation before ``step``."""
    steps = [s for s in sorted(record.layers) if s <= step and name in record.layers[s]]
    if not steps or not (row := record.layers[steps[-1]][name]):
        return None
    best = min if WATCHED[name].down else max
    return row.index(best(row))
