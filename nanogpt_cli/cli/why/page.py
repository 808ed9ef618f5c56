"""How ``nanogpt why`` shows what it found, on one screen."""

from __future__ import annotations

import itertools
import math
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli import shell, units
from nanogpt_cli.cli import console
from nanogpt_cli.printable import draws, printable
from nanogpt_cli.run import explained

if TYPE_CHECKING:
    from nanogpt_cli.training.causes.diagnosis import Diagnosis
    from nanogpt_cli.training.causes.documents import Sequence as Text

_KINDS = {
    "non_finite": "a value that is not finite", "loss_spike": "a loss spike",
    "divergence": "divergence", "bad_start": "a bad start", "asked": "no incident",
    "frozen": "a frozen layer",
}  # fmt: skip
_JUMPS = ("non_finite", "loss_spike", "divergence", "bad_start", "asked")
_FEW = 8  # steps that tell what is usual
_CHART = 24  # cells
_TRIALS, _DOCUMENTS = 6, 3
_WIDTH = 78  # columns of sentences, within a terminal of 80


def show(found: Diagnosis) -> None:
    """Print it."""
    for heading, lines in (
        ("", textwrap.wrap(f"{shell.path_word(found.run.path)}: {_event(found)}", _WIDTH)),
        ("What happened", list(_happened(found))),
        ("The steps made again", list(_replay(found))),
        ("Which change cures it", list(_cures(found))),
        ("Which documents", list(_documents(found))),
        ("What to type", list(_to_type(found))),
    ):
        if lines:
            title = f"\n{console.painted(heading, 'bold', sys.stdout)}\n" if heading else ""
            body = "\n".join(f"  {line}" if heading else line for line in lines)
            console.write(sys.stdout, f"{title}{printable(body)}\n")


def _event(found: Diagnosis) -> str:
    event = found.event
    if event is None:
        last = found.record.last
        made = f"{last} step{'s' * (last != 1)}"
        if said := _standing(found):
            return f"no incident and no spike in {made}, but {said}"
        return f"looks healthy: no incident, no spike and no lasting alarm in {made}"
    kind = _KINDS.get(event.kind, event.kind.replace("_", " "))
    said = f" ({event.message})" if event.message else ""
    return f"{kind} at step {event.step}{said}"


def _standing(found: Diagnosis) -> str:
    """Alarms that are no jump of the loss and were not cleared: what they say, as a sentence."""
    said = [f"since step {a.step}: {a.message}" for a in found.record.standing]
    return "; ".join(said)


def next_command(found: Diagnosis) -> str:
    """What to type next: the best change, what an alarm means, or the dashboard."""
    if found.fix:
        return shell.command(*found.fix.words)
    if found.event is None:
        for alarm in found.record.standing:
            if command := explained.command(alarm.kind):
                return command
    return shell.command("watch", found.run.path)


def _happened(found: Diagnosis) -> Iterator[str]:
    story, event = found.story, found.event
    if story is None or event is None:
        return
    first = story.first
    if first is None:
        if story.healthy < _FEW:
            came = f"{story.healthy} steps" if story.healthy != 1 else "1 step"
            yield f"{came} came before it, too few to tell what is usual"
        else:
            yield "no statistic left its band before it"
    elif first.name == "loss":
        yield f"the loss itself left its band first, at step {first.step}"
    else:
        usual = "" if first.usual is None else f", usually {_value(first.name, first.usual)}"
        yield from _wrapped(f"first: {first.words}, at step {first.step}{_lead(found)}")
        yield f"  it was {_value(first.name, first.value)}{usual}"
    yield from _other_first(found)
    yield from _chart(found)


def _lead(found: Diagnosis) -> str:
    """How long before the loss the first statistic left its band, if the loss left its own."""
    story, event = found.story, found.event
    assert story is not None
    assert story.first is not None
    assert event is not None
    if event.kind == "asked" and all(link.name != "loss" for link in story.links):
        return "; the loss stayed in its own band"
    lead = story.onset - story.first.step
    if not lead:
        return ", with the loss" if event.kind in _JUMPS else ""
    what = "the loss" if event.kind in _JUMPS else "the alarm"
    return f", {lead} step{'s' * (lead != 1)} before {what}"


def _value(name: str, value: float | None) -> str:
    """A statistic's value; the logarithm of update over weight as alarms have it."""
    if name == "update_ratio" and value is not None and math.isfinite(value):
        return f"10^{value:.1f}"
    return units.number(value)


def _other_first(found: Diagnosis) -> Iterator[str]:
    """What the alarm has named, where measuring every step names something else."""
    assert found.story is not None
    first, logged = found.story.first, found.logged.first if found.logged else None
    if first and logged and (first.name, first.layer) != (logged.name, logged.layer):
        yield from _wrapped(
            f"(the log's own, rarer statistics name {logged.words}, at step {logged.step})"
        )


def _chart(found: Diagnosis) -> Iterator[str]:
    """The chain as sparklines over the same steps."""
    from nanogpt_cli.training.causes.chain import WATCHED

    story, event = found.story, found.event
    assert story is not None
    assert event is not None
    start, stop = max(1, event.step - 45), min(event.step + 15, max(found.record.last, event.step))
    when = {link.name: link for link in reversed(story.links)}
    shown = [(name, row) for name, row in story.rows.items() if any(s <= stop for s, _ in row[1])]
    if not shown:
        return
    for name, (layer, points) in shown:
        words = WATCHED[name].words if name in WATCHED else name
        label = words if layer is None else f"{words}, layer {layer}"
        link = when.get(name)
        value = _value(name, _at(points, event.step))
        left = f" since {link.step}" if link and link.layer in (layer, None) else ""
        bars = _spark(points, start, stop, lowest=name in WATCHED and WATCHED[name].down)
        yield f"{label:<32} {bars} {value:>7}{left}"
    yield f"{'':<32} {f'step {start}':<{_CHART - 10}}{f'step {stop}':>10}"


def _at(points: Sequence[tuple[int, float]], step: int) -> float | None:
    known = [value for s, value in points if s <= step]
    return known[-1] if known else None


def _spark(
    points: Sequence[tuple[int, float]], start: int, stop: int, *, lowest: bool = False
) -> str:
    """Values over steps in ``_CHART`` cells, each with its worst one; not finite is the top."""
    import numpy as np

    from nanogpt_cli.tui.drawing.draw import sparkline

    worst = min if lowest else max
    top = max((v for s, v in points if start <= s <= stop and math.isfinite(v)), default=0.0)
    drawable = [(s, v if math.isfinite(v) else top) for s, v in points]
    edges = [start + i * (stop + 1 - start) / _CHART for i in range(_CHART + 1)]
    drawn = []
    for low, high in itertools.pairwise(edges):
        here = [v for s, v in drawable if low <= s < high]
        last = _at(drawable, int(low))
        drawn.append(worst(here) if here else math.nan if last is None else last)
    bars = sparkline(np.array(drawn), _CHART, ascii_only=not draws(sys.stdout))
    return bars.replace("×", " ")


def _replay(found: Diagnosis) -> Iterator[str]:
    made = found.agreement
    if made is not None:
        where = f"checkpoint {found.start}" if found.start else "the initial values"
        if made.exact and made.equal:
            last = made.first + made.equal - 1
            steps = f"step {last}" if last == made.first else f"steps {made.first} to {last}"
            yield f"from {where}: {steps}, each loss with the bits of the log"
        elif made.exact:
            yield f"from {where}: the log has no loss to compare with"
        else:
            same = f"{made.equal} of the losses have" if made.equal else "no loss has"
            yield from _wrapped(
                f"from {where}: {same} the bits of the log; they differ since "
                f"step {made.differs}, by {made.largest:.2g} at most"
            )
            yield from (f"  {reason}" for reason in made.why)
            if not made.why and not found.start and made.differs == made.first:
                begun = found.record.begun_from
                yield from _wrapped(
                    f"  it began with other weights, which are not kept: {begun}"
                    if begun
                    else "  perhaps it began with other weights (train --from), which are not kept"
                )
            elif not made.why:
                yield "  nothing that the run has recorded explains it"
    if found.problem:
        yield from _wrapped(f"no change was tried: {found.problem}")


def _cures(found: Diagnosis) -> Iterator[str]:
    tried = found.found
    if tried is None:
        return
    window, own = tried.window, _own_loss(found)
    source = "the steps before" if window.healthy else "the best change"
    mean = f"mean loss of steps {window.first} to {window.last}: {own:.4g}"
    if tried.excess:
        yield from _wrapped(f"{mean}, which is {tried.excess:.3g} above the course of {source}")
    else:
        yield f"{mean}; no change has a lower one"
    yield f"{'':<34} {'cures':>6} {'loss':>8} {'steps':>6}"
    for outcome in tried.outcomes[:_TRIALS]:
        share = f"{max(0.0, outcome.effect):.0%}" if outcome.complete else "no"
        yield f"{outcome.trial.words:<34} {share:>6} {outcome.loss:>8.4g} {outcome.steps:>6}"
    if rest := tried.outcomes[_TRIALS:]:
        yield from _listed("with less effect", [outcome.trial.words for outcome in rest])
    if tried.untried:
        yield from _listed("no time for", [trial.words for trial in tried.untried])
    for trial, reason in tried.refused:
        yield from _wrapped(f"cannot be tried: {trial.words}: {reason}")


def _listed(word: str, changes: Sequence[str]) -> list[str]:
    """A list under a word."""
    return _wrapped(f"{word}: {', '.join(changes)}")


def _wrapped(sentence: str) -> list[str]:
    """Lines that fit under a heading."""
    return textwrap.wrap(sentence, _WIDTH - 2, subsequent_indent="  ", break_long_words=False)


def _own_loss(found: Diagnosis) -> float:
    assert found.found is not None
    window = found.found.window
    values = [
        window.bounded(window.base.get(s, window.cap)) for s in range(window.first, window.last + 1)
    ]
    return sum(values) / len(values)


def _documents(found: Diagnosis) -> Iterator[str]:
    batch = found.batch
    if batch is None:
        return
    yield (
        f"step {batch.step}: {len(batch.sequences)} sequences, loss {units.loss(batch.loss)}; "
        f"other batches with the same weights {units.loss(batch.others)}"
    )
    for text in batch.sequences[:_DOCUMENTS]:
        share = "" if text.share is None else f", {text.share:.0%} of the gradient"
        yield f"offset {text.offset}: loss {units.loss(text.loss)}{share}"
        yield f"  {units.shortened(_quoted(text.text), 72)}"
        if text.file:
            yield f"  {_place(text)}"


def _place(text: Text) -> str:
    unit = "line" if text.record else "byte"
    return f"{shell.path_word(Path(text.file))}, {unit} {text.place}"


def _quoted(text: str) -> str:
    """On one line, and harmless."""
    return printable(text.replace("\n", "⏎").replace("\t", "→"), keep="")


def _to_type(found: Diagnosis) -> Iterator[str]:
    if found.event is None:
        return
    yield from _wrapped(verdict(found))
    if found.fix:
        for key, (now, then) in found.fix.changes.items():
            yield f"{key} = {_short(then)}   (was {_short(now)})"
        yield shell.command(*found.fix.words)


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return units.shortened(text, 60)


def verdict(found: Diagnosis) -> str:
    """The finding as a sentence."""
    if found.event is None:
        return _standing(found) or "the run looks healthy"
    best = found.found.best if found.found else None
    if best is not None and found.found is not None:
        return f"the cause is {best.trial.cause}: {best.trial.words} cures {best.effect:.0%} of it"
    if found.found is None and found.event.kind == "asked" and found.agreement:
        return f"there is nothing to cure: {found.problem}"
    if found.found is None:
        first = found.story.first if found.story else None
        since = f"; first out of its band: {first.words}, at step {first.step}" if first else ""
        return f"the log alone does not tell the cause{since}"
    return "none of the changes that were tried cures it by itself"
