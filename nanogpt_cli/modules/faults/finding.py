"""Findings on single parts of a module, and how many of a kind become one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nanogpt_cli.init.lint import SEVERITIES, Verdict
from nanogpt_cli.modules.anatomy import Part


@dataclass(frozen=True)
class Finding:
    """What is wrong with one part.

    Attributes:
        severity, topic, value: those of the verdict.
        part: which part.
        what: the sentence without its subject, such as ``row 3 is 50 times as large``.
        advice: likely cause and what to do; the same for all findings of one topic and role.
    """

    severity: str
    topic: str
    part: Part
    what: str
    advice: str
    value: float = math.nan


def spans(numbers: Iterable[int], most: int = 4) -> str:
    """Sorted whole numbers as text: ``3, 7-12``; at most ``most`` spans, then ``…``."""
    found: list[list[int]] = []
    for n in sorted(set(numbers)):
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in found[:most]]
    return ", ".join(shown) + (", …" if len(found) > most else "")


def blocks(layers: Iterable[int]) -> str:
    """``block 3`` or ``blocks 0-2, 5``, counted from 0 as in parameters' names."""
    distinct = sorted(set(layers))
    return f"block{'s' if len(distinct) > 1 else ''} {spans(distinct)}"


def merged(findings: Iterable[Finding]) -> list[Verdict]:
    """One verdict for all findings of a topic and role; the worst of them gives the figures."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.topic, finding.part.role, finding.advice), []).append(finding)
    return [_one(group) for group in groups.values()]


def _one(group: list[Finding]) -> Verdict:
    first = max(group, key=lambda f: SEVERITIES.index(f.severity))
    layers = {f.part.layer for f in group if f.part.layer >= 0}
    also = ""
    others = len({f.part.key for f in group}) - 1
    if others:
        place = f" in {blocks(layers)}" if layers else ""
        also = f" ({others} more like it: {first.part.role}{place})"
    advice = f": {first.advice}" if first.advice else ""
    return Verdict(
        first.severity, first.topic, f"{first.part.key}: {first.what}{also}{advice}", first.value
    )
