"""The answer of ``nanogpt init-inspect``: is it fine, and if not, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanogpt_cli.cli import console

if TYPE_CHECKING:
    from rich.table import Table

    from nanogpt_cli.init.lint import Verdict

MARKS = {"ok": "✓", "note": "i", "warn": "!", "fail": "✗"}
_COLOURS = {"ok": "green", "note": "cyan", "warn": "yellow", "fail": "bold red"}
_SHOWN = 6  # lines on the first page, so that chart and weights still fit
_FINDINGS = 3  # on the first page, each with what to do
_TRAIN = "nanogpt train"


@dataclass(frozen=True)
class Judged:
    """What verdicts are about.

    Attributes:
        basis: what they rest on: ``256 random tokens, seed 0``.
        trained: whether the weights are trained, and thus no start.
        scheme: name of the scheme that draws the weights; empty where that is not ours to change.
    """

    basis: str
    trained: bool = False
    scheme: str = ""


def by_severity(found: Sequence[Verdict]) -> list[Verdict]:
    """The gravest first."""
    from nanogpt_cli.init.lint import SEVERITIES

    return sorted(found, key=lambda v: -SEVERITIES.index(v.severity))


def early(verdicts: Sequence[Verdict], seconds: float) -> None:
    """Print what theory alone answers, before the measurement."""
    bad = [v for v in by_severity(verdicts) if _is_finding(v)]
    topics = ", ".join(dict.fromkeys(v.topic for v in bad))
    said = f"{_counted(bad)} ({topics})" if bad else "fine"
    took = f"({seconds:.1f} s, no weight drawn)"
    console.stdout().print(console.styled("\n", ("By theory", "bold"), f": {said} ", (took, "dim")))


def answer(verdicts: Sequence[Verdict], judged: Judged, *, whole: bool) -> int:
    """Print the answer, the verdicts behind it, and the command that explains them.

    Args:
        verdicts: all that were found.
        judged: what they are about.
        whole: whether to print all of them in full; else the gravest, with what to do, and in
            short what is fine.

    Returns:
        The number of verdicts shown as findings.
    """
    out, ordered = console.stdout(), by_severity(verdicts)
    bad = [v for v in ordered if _is_finding(v)]
    colour = _COLOURS[ordered[0].severity] if bad else "bold green"
    out.print(
        console.styled("\n", (_said(ordered, judged), colour), (f"  ({judged.basis})", "dim"))
    )
    findings = bad if whole else bad[:_FINDINGS]
    others = [v for v in ordered if not _is_finding(v)]
    others = others if whole else others[: max(0, _SHOWN - 2 * len(findings))]
    out.print(_listing(findings, others, judged, whole=whole))
    if left := len(bad) - len(findings):
        out.print(f"   and {left} more: add --details")
    names = list(dict.fromkeys(v.topic for v in (*findings, *others)))
    if names:
        chosen, more = names[0], f" (or {', '.join(names[1:])})" if names[1:] else ""
        text = f"What it means: nanogpt explain {chosen}{more}"
        out.print(console.styled((text, "dim")))
    return len(findings)


def _is_finding(verdict: Verdict) -> bool:
    return verdict.severity in ("warn", "fail")


def _counted(found: Sequence[Verdict]) -> str:
    """``1 fault and 2 warnings``."""
    kinds = (("fail", "fault"), ("warn", "warning"), ("note", "note"))
    counts = [(sum(v.severity == key for v in found), word) for key, word in kinds]
    return " and ".join(f"{n} {word}{'s' * (n > 1)}" for n, word in counts if n)


def _said(verdicts: Sequence[Verdict], judged: Judged) -> str:
    these = "These weights" if judged.trained else "This initialisation"
    if bad := [v for v in verdicts if _is_finding(v)]:
        return f"{these} {'have' if judged.trained else 'has'} {_counted(bad)}"
    notes = _counted([v for v in verdicts if v.severity == "note"])
    return f"{these} {'look' if judged.trained else 'looks'} fine" + (f", {notes}" if notes else "")


def _listing(
    findings: Sequence[Verdict], others: Sequence[Verdict], judged: Judged, *, whole: bool
) -> Table:
    """One row per verdict with a mark, and one for what to do about a finding, said once."""
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    advised: set[str] = set()
    for v in (*findings, *others):
        style = _COLOURS[v.severity] if _is_finding(v) else ""
        mark = console.styled(" ", (MARKS[v.severity], _COLOURS[v.severity]))
        table.add_row(mark, console.styled((v.text if whole else _words(v), style)))
        advice = _advice(v, judged) if _is_finding(v) else ""
        if advice and advice not in advised:
            advised.add(advice)
            table.add_row(" →", console.styled(advice))
    return table


def _words(verdict: Verdict) -> str:
    """What is fine in everyday words with its limit; any other verdict as it stands."""
    from nanogpt_cli.init import lint_signals as limits

    value = verdict.value
    plain = {
        "growth": f"signals grow ×{value:.3g} from the embedding to the last block; up to "
        f"×{limits.MAX_GROWTH:g} is fine",
        "theory": f"signals are within {value:.1%} of what theory expects at every depth",
        "gradients": f"gradients grow ×{value:.3g} from the last block to the first; up to "
        f"×{limits.MAX_GRADIENT_RATIO:g} is fine",
        "loss": f"the loss starts at that of a blind guess {value:+.2f}; up to "
        f"+{limits.MAX_LOSS_EXCESS:g} is fine",
        "nearest": verdict.text.partition(" (")[0],
    }
    return plain.get(verdict.topic, verdict.text) if verdict.severity == "ok" else verdict.text


def _advice(verdict: Verdict, judged: Judged) -> str:
    """What to do: another way to draw our own weights, or where to look in foreign ones."""
    from nanogpt_cli.explain import registry

    topic = next((t[verdict.topic] for t in registry.KINDS.values() if verdict.topic in t), None)
    if topic is None:
        return ""
    if not judged.scheme:
        return f"usual cause: {topic.causes[0]}"
    drawn_so = f"model.init={judged.scheme}"
    possible = [a for a in topic.actions if not a.command.endswith(drawn_so)]
    action = min(possible, key=lambda a: not a.command.startswith(_TRAIN), default=None)
    return f"{action.text} {action.command}" if action else ""
