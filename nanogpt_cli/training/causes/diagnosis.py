"""``diagnose``: what happened in a run, since when, which change cures it, and what to type."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from nanogpt_cli.errors import UserError
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.training.causes import bands, chain, trials
from nanogpt_cli.training.causes import record as records
from nanogpt_cli.training.causes.chain import Story
from nanogpt_cli.training.causes.record import Event, Record

if TYPE_CHECKING:
    from nanogpt_cli.text.tokens import TokenData
    from nanogpt_cli.training.causes.documents import Batch
    from nanogpt_cli.training.causes.fixes import Fix
    from nanogpt_cli.training.causes.rerun import Agreement, Course, Rerun
    from nanogpt_cli.training.causes.search import Found

# Steps before the event whose statistics a replay measures one by one.
_WATCHED_STEPS = 60
# Share of the budget that making the steps up to the event again may take.
_REPLAY_SHARE = 0.6


@dataclass
class Diagnosis:
    """All that was found.

    Attributes:
        run: the run.
        event: what was explained; ``None`` if the run looks healthy.
        story: which statistics left their band, with those of the steps made again.
        logged: the same by the log alone, as the trainer's alarm has told it.
        start: step after which the replay began; -1 if there was none.
        agreement: of the replay with the log; ``None`` if there was none.
        problem: why there was no replay, or no trials after it; empty otherwise.
        batch: the sequences of the step.
        found: what the trials say.
        fix: what to type.
        seconds: that it took.
    """

    run: RunFolder
    record: Record
    event: Event | None = None
    story: Story | None = None
    logged: Story | None = None
    start: int = -1
    agreement: Agreement | None = None
    problem: str = ""
    batch: Batch | None = None
    found: Found | None = None
    fix: Fix | None = None
    seconds: float = 0.0


def diagnose(
    run: RunFolder,
    open_tokens: Callable[[], TokenData],
    *,
    step: int = 0,
    budget: float = 120.0,
    report: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Diagnosis:
    """Explain what went wrong in a run. Nothing in its folder is changed.

    Args:
        run: the run, which may be another version's or another machine's.
        open_tokens: gives the data it was trained on.
        step: to be explained, from 1; by default the run's incident or its worst spike.
        budget: seconds for the replay and the trials; one that has begun is finished.
        report: receives lines of commentary.
        clock: in seconds.

    Raises:
        UserError: the run has no log, or has not made the step.
    """
    begun = clock()
    record = records.read(run)
    event = records.to_explain(record, step)
    result = Diagnosis(run, record, event)
    if event is not None:
        result.story = result.logged = chain.tell(record, event)
        try:
            _replay(result, open_tokens, begun + budget, report, clock)
        except (UserError, ValueError) as error:  # the log alone has to do
            message = error.message if isinstance(error, UserError) else str(error)
            # A recipe's problems are lines of their own under a heading that ends with a colon.
            result.problem = " ".join(message.split()) if message else type(error).__name__
    result.seconds = clock() - begun
    return result


def _replay(
    result: Diagnosis,
    open_tokens: Callable[[], TokenData],
    deadline: float,
    report: Callable[[str], None],
    clock: Callable[[], float],
) -> None:
    from nanogpt_cli.training.causes import fixes, search
    from nanogpt_cli.training.causes.rerun import Rerun

    record, event, story = result.record, result.event, result.story
    assert event is not None
    assert story is not None
    rerun = Rerun(result.run, record, open_tokens())
    begun = clock()
    step_s = _step_seconds(result.run)
    logged = dict(record.layers)
    course, made = _make_again(result, rerun, (deadline - begun) * _REPLAY_SHARE, step_s, report)
    agreement = result.agreement
    assert agreement is not None
    if not agreement.close and agreement.differs in range(1, max(event.step, agreement.first + 1)):
        # Another course of training, as from other weights: it says nothing about the run's.
        record.layers, result.batch = logged, None
        result.problem = f"the steps made again differ from the log since step {agreement.differs}"
        return
    story = result.story = chain.tell(record, event)  # with statistics of every step
    if result.problem:
        return
    if event.kind == "asked" and not any(link.name == chain.LOSS for link in story.links):
        result.problem = f"the loss of step {event.step} is within its band"
        if story.healthy < bands.FEWEST:
            result.problem = f"too few steps came before step {event.step} to judge its loss"
        return
    if not agreement.close:
        result.problem = f"the steps made again differ from the log since step {agreement.differs}"
        return
    if made:
        step_s = (clock() - begun) / made
    scratch = not record.begun_from and (result.start == 0 or _same_beginning(rerun, report))
    known = trials.Evidence(
        record, event, story, rerun.recipe(event.step), scratch, result.start,
        result.batch.excess if result.batch else 0.0, step_s,
    )  # fmt: skip
    last = known.recipe.train.max_steps
    judged = search.window(record, event, story.onset, max(last, event.step))
    if not agreement.exact or any(s not in judged.base for s in range(judged.first, event.step)):
        judged = _own_base(course, judged)
    result.found = search.run(
        rerun, known, judged, seconds=deadline - clock(), report=report, clock=clock
    )
    if best := result.found.best:
        result.fix = fixes.propose(rerun, best.trial, event.step, result.start)


def _step_seconds(run: RunFolder) -> float:
    """Seconds of a step as the log has them; they are only to tell minutes from hours."""
    from nanogpt_cli.run import events
    from nanogpt_cli.run.follow import EventReader

    found = [e.step_s for e in EventReader(run.events).read(1 << 20, 1.0)
             if isinstance(e, events.Step)]  # fmt: skip
    return median(found) if found else 0.0


def _make_again(
    result: Diagnosis, rerun: Rerun, seconds: float, step_s: float, report: Callable[[str], None]
) -> tuple[Course, int]:
    """Make the steps up to the event again, with statistics of the last ones and the batch."""
    from nanogpt_cli.training.causes import documents
    from nanogpt_cli.training.causes.rerun import Course, compare

    event, story = result.event, result.story
    assert event is not None
    assert story is not None
    start = _begin_at(event, story, rerun, seconds, step_s)
    known = min(event.step, result.record.last + 1)
    where = f"checkpoint {start}" if start else "the initial values"
    steps = f"steps {start + 1} to {known}" if known > start + 1 else f"step {known}"
    report(f"making {steps} again from {where}")
    course, losses = Course(rerun, start), {}
    watch = _Watch(course, known)
    jump = event.kind in trials.JUMPS
    for step in range(start + 1, known + 1):
        if jump and step == story.onset:
            result.batch = documents.look(course.stepper, step, rerun.data, report=report)
        for measured in course.steps(step, measured=watch.before):
            losses[step] = measured.loss
            watch.after(result.record, step)
            if step == event.step and event.kind == "non_finite" and measured.finite:
                result.problem = (
                    f"step {step} is finite when it is made again: compiled kernels or another "
                    "machine made it not finite"
                )
    result.start = start
    result.agreement = compare(rerun, losses, known)
    return course, len(losses)


def _begin_at(event: Event, story: Story, rerun: Rerun, seconds: float, step_s: float) -> int:
    """The step after which to begin: before the first link of the chain, if time allows.

    Raises:
        UserError: even from the nearest checkpoint it would take longer than the budget.
    """
    first = min(story.first.step, story.onset) if story.first else story.onset
    nearest = rerun.starts(story.onset)
    wanted = rerun.starts(first)
    if event.kind not in trials.JUMPS:
        wanted = [0, *nearest]
    for start in (wanted[0], nearest[0]):
        if (event.step - start) * step_s <= seconds or step_s == 0:
            return start
    need = (event.step - nearest[0]) * step_s
    raise UserError(
        f"from {f'checkpoint {nearest[0]}' if nearest[0] else 'its start'} to step {event.step} "
        f"would take about {need:.0f} s, longer than the budget"
    )


class _Watch:
    """Measures the statistics of the layers at every one of the last steps before the event."""

    def __init__(self, course: Course, last: int) -> None:
        self.course, self.first = course, last - _WATCHED_STEPS
        self._collector: Any = None

    def before(self, stepper: Any) -> None:
        """Between the gradient of a step and its update."""
        from nanogpt_cli.training.setup import probe_ids
        from nanogpt_cli.training.spec import resolve
        from nanogpt_cli.training.stats import Collector

        if self.course.done + 1 <= self.first:
            return
        if self._collector is None or self._collector.model is not stepper.model:
            rerun = self.course.rerun
            spec = resolve(rerun.recipe(self.course.done + 1), rerun.data)
            ids = probe_ids(spec).to(stepper.device.device)
            self._collector = Collector(stepper.model, ids, stepper.device, every=1, budget=0.0)
        self._collector.before_update()

    def after(self, record: Record, step: int) -> None:
        """After the update."""
        if self._collector is not None and step not in record.layers:
            norms = self.course.stepper.grad_norms()
            record.layers[step] = self._collector.after_update(step - 1, norms, 0.0)


def _same_beginning(rerun: Rerun, report: Callable[[str], None]) -> bool:
    """Whether the run began with the values that its recipe draws, and they can be drawn again."""
    from nanogpt_cli.training.causes.rerun import Course, compare

    report("making steps 1 and 2 again from the initial values")
    course = Course(rerun, 0)
    losses = dict(enumerate((measured.loss for measured in course.steps(2)), 1))
    return bool(losses) and compare(rerun, losses, 2).close


def _own_base(course: Course, judged: Any) -> Any:
    """The window with the losses of the replay, where the log is not what it makes."""
    base = dict(judged.base)
    for measured in course.steps(judged.last):
        base[course.done] = measured.loss
        if not math.isfinite(measured.loss):
            break
    return dataclasses.replace(judged, base=base)
