"""Counterfactual replays: the same steps with one change each, ranked by what they cure."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from nanogpt_cli.errors import UserError
from nanogpt_cli.training.causes import bands, trials
from nanogpt_cli.training.causes.record import Event, Record
from nanogpt_cli.training.causes.rerun import Course, Rerun
from nanogpt_cli.training.causes.trials import Evidence, Trial

# Steps after the event that tell whether a change has cured it.
AFTER = 30
# The same where the event is a condition that lasts.
_AFTER_SLOW = 50
# A change cures if it takes away this share of the excess.
_CURED = 0.5
# Effects this close to the best one count as equal, and the most specific change is named.
_EQUAL = 0.12
# A trial is given up after so many steps of the window without any effect.
_PATIENCE = 12
# Learning rates beyond those among the candidates, where nothing else cures.
_FURTHER, _FURTHEST = 100.0, 1e6
# The smallest excess (nats per step of the window) that is worth explaining.
LEAST = 0.02


@dataclass(frozen=True)
class Outcome:
    """What came of one trial.

    Attributes:
        trial: the change.
        losses: by step.
        loss: mean over the window.
        excess: mean loss above the healthy course there, in nats.
        effect: share of the run's own excess that is gone; negative if it grew.
        steps: that the trial took.
        complete: it was not given up before the end of the window.
    """

    trial: Trial
    losses: Mapping[int, float]
    loss: float
    excess: float
    effect: float
    steps: int
    complete: bool

    @property
    def cures(self) -> bool:
        """Whether most of the excess is gone."""
        return self.complete and self.effect >= _CURED


@dataclass(frozen=True)
class Window:
    """The steps that are judged, and by what.

    Attributes:
        first, last: steps.
        base: the run's own losses.
        healthy: the healthy course by step, as the steps before forecast it; empty where there were
            too few, and the best trial stands for it.
        cap: losses above count as this.
        spread: by which single losses differ from their course, in nats; the forecast is no
            better than that.
    """

    first: int
    last: int
    base: Mapping[int, float]
    healthy: Mapping[int, float]
    cap: float
    spread: float = 0.0

    def bounded(self, loss: float) -> float:
        """A loss that NaN and infinities do not make useless."""
        return min(loss, self.cap) if math.isfinite(loss) else self.cap

    def judged(self, trial: Trial) -> list[int]:
        """The steps that count for a trial: not those whose data it leaves out."""
        return [s for s in range(self.first, self.last + 1) if s not in trial.change.skip]


@dataclass(frozen=True)
class Found:
    """The result of the search.

    Attributes:
        outcomes: ranked, the best one first.
        untried: changes that the budget left no time for.
        refused: changes that cannot be made, with the reason.
        window: what was judged.
        excess: the run's own mean excess, in nats per step of the window.
        steps: made in all trials.
    """

    outcomes: tuple[Outcome, ...]
    untried: tuple[Trial, ...]
    refused: tuple[tuple[Trial, str], ...]
    window: Window
    excess: float
    steps: int

    @property
    def best(self) -> Outcome | None:
        """What cures; ``None`` if nothing that was tried does."""
        return self.outcomes[0] if self.outcomes and self.outcomes[0].cures else None


def window(record: Record, event: Event, onset: int, most: int) -> Window:
    """The steps that tell a cure from none.

    Args:
        record: of the run.
        event: to be explained.
        onset: first step of its loss outside the band.
        most: the run's last planned step.
    """
    if event.kind in trials.JUMPS:
        first, last = onset, min(event.step + AFTER, most)
    else:  # the last part of a stretch in which a healthy run would have learnt
        last = min(max(event.step, 50) + _AFTER_SLOW, most)
        first = max(1, last - AFTER)
    steps = range(first, last + 1)
    base = {s: record.losses[s] for s in steps if s in record.losses}
    healthy: dict[int, float] = {}
    spread = 0.0
    if event.kind in trials.JUMPS:
        healthy, spread = forecast(record, onset, steps)
    return Window(first, last, base, healthy, trials.cap(record), spread)


def forecast(record: Record, onset: int, steps: Sequence[int]) -> tuple[dict[int, float], float]:
    """The healthy course of the loss, and the spread around it.

    It is a robust line through the steps before the event that flattens out.
    """
    before = [(s, v) for s, v in sorted(record.losses.items()) if s < onset and math.isfinite(v)]
    before = before[-40:]
    if len(before) < 20:
        return {}, 0.0
    line = bands.fit(before)
    last = before[-1][0]
    slope = min(0.0, line.slope)
    middle = median(v - slope * (s - last) for s, v in before)
    return {s: middle + slope * min(s - last, 20) / 2 for s in steps}, line.spread


def run(
    rerun: Rerun,
    known: Evidence,
    judged: Window,
    *,
    seconds: float,
    report: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Try the changes, the most likely ones first, until the budget is spent.

    Args:
        rerun: of the run.
        known: where to begin, and what is likely.
        judged: the steps to judge by.
        seconds: the budget; a trial that has begun is finished.
        report: receives a line a trial.
        clock: in seconds.
    """
    begun, made = clock(), 0
    tried: list[tuple[Trial, dict[int, float], bool]] = []
    refused: list[tuple[Trial, str]] = []
    untried: list[Trial] = []
    per_step = known.step_s
    waiting, divisor = trials.candidates(known), _FURTHER
    lowest = [trial for trial in waiting if trial.kind == "lr"][-2:]
    while waiting or divisor <= _FURTHEST:
        if not waiting:  # far too high a learning rate is found by going down
            if untried or _is_enough(tried, judged, lowest):
                break
            waiting, divisor = trials.lower_rates(known, divisor), divisor * 10
            lowest = list(waiting)
        trial = waiting.pop(0)
        start = 0 if trial.scratch else known.start
        planned = (judged.last - start) * per_step
        if tried and clock() - begun + planned > seconds:
            untried.append(trial)
            continue
        report(f"{trial.words}: steps {start + 1} to {judged.last}")
        before = clock()
        try:
            losses, whole = _try(rerun, trial, start, judged)
        except (UserError, ValueError) as error:
            refused.append((trial, str(error).splitlines()[0]))
            continue
        made += len(losses)
        per_step = (clock() - before) / max(1, len(losses))
        tried.append((trial, losses, whole))
    outcomes, excess = _judge(tried, judged)
    return Found(outcomes, tuple(untried), tuple(refused), judged, excess, made)


def _is_enough(
    tried: Sequence[tuple[Trial, dict[int, float], bool]],
    judged: Window,
    lowest: Sequence[Trial],
) -> bool:
    """Whether a change cures, and a still lower learning rate would not do better."""
    outcomes, _ = _judge(tried, judged)
    cures = [outcome for outcome in outcomes if outcome.cures]
    if judged.healthy or not cures:
        return bool(cures)
    best = max(cures, key=lambda outcome: outcome.effect)
    return best.trial not in lowest


def _try(rerun: Rerun, trial: Trial, start: int, judged: Window) -> tuple[dict[int, float], bool]:
    """Losses of the steps from ``start`` on; whether the trial came to the end of the window."""
    course = Course(rerun, start, trial.change)
    losses: dict[int, float] = {}
    above = 0
    for measured in course.steps(judged.last):
        step = course.done
        losses[step] = measured.loss
        base = judged.base.get(step, judged.cap)
        hopeless = step >= judged.first and judged.bounded(measured.loss) >= judged.cap
        worse = not math.isfinite(measured.loss) and step not in trial.change.skip
        above = above + 1 if hopeless else 0
        if worse or (above >= _PATIENCE and judged.bounded(base) >= judged.cap):
            return losses, False
    return losses, True


def _judge(
    tried: Sequence[tuple[Trial, dict[int, float], bool]], judged: Window
) -> tuple[tuple[Outcome, ...], float]:
    """Rank what was tried; and the run's own excess."""
    healthy = _healthy(tried, judged)

    def excess(losses: Mapping[int, float], steps: Sequence[int]) -> float:
        values = [
            judged.bounded(losses.get(s, judged.cap)) - min(healthy[s], judged.cap) for s in steps
        ]
        return max(0.0, fmean(values)) if values else 0.0

    every = list(range(judged.first, judged.last + 1))
    base = excess(judged.base, every)
    found = []
    for trial, losses, whole in tried:
        steps = judged.judged(trial)
        left = excess(losses, steps)
        loss = fmean(judged.bounded(losses.get(s, judged.cap)) for s in steps) if steps else 0.0
        effect = 1 - left / max(base, 1e-9) if base >= LEAST else 0.0
        found.append(Outcome(trial, losses, loss, left, effect, len(losses), whole))
    return tuple(_ranked(found)), base


def _healthy(
    tried: Sequence[tuple[Trial, dict[int, float], bool]], judged: Window
) -> dict[int, float]:
    """The forecast, raised to the best trial as far as its uncertainty goes."""
    best = _best(tried, judged)
    if not judged.healthy:
        return best
    lift = fmean(best.values()) - fmean(judged.healthy.values())
    lift = min(max(lift, 0.0), judged.spread)
    return {step: loss + lift for step, loss in judged.healthy.items()}


def _best(
    tried: Sequence[tuple[Trial, dict[int, float], bool]], judged: Window
) -> dict[int, float]:
    """The course of the best trial, over the steps that count for it."""
    courses = [judged.base]
    courses += [
        {s: losses.get(s, judged.cap) for s in judged.judged(trial)}
        for trial, losses, whole in tried
        if whole and judged.judged(trial)
    ]
    bounded = [{s: judged.bounded(v) for s, v in c.items()} for c in courses if c]
    best = min(bounded, key=lambda c: fmean(c.values()), default={})
    usual = fmean(best.values()) if best else judged.cap
    return {s: best.get(s, usual) for s in range(judged.first, judged.last + 1)}


def _ranked(found: Sequence[Outcome]) -> list[Outcome]:
    """By effect; among equal ones the most specific change comes first."""
    rest = sorted(found, key=lambda o: (-o.complete, -o.effect))
    best = rest[0].effect if rest else 0.0
    equal = [o for o in rest if o.cures and o.effect >= best - _EQUAL]
    equal.sort(key=lambda o: (o.trial.specific, -o.effect))
    return equal + [o for o in rest if o not in equal]
