"""What a page of ``nanogpt explain`` consists of."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass

ALARM, SIGNAL, WEIGHTS = "alarm", "signal", "weights"


@dataclass(frozen=True)
class Action:
    """Something to do, and the command that does it; the command may be empty."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Topic:
    """A page before its numbers are computed.

    Attributes:
        title: what is the matter, in a few words.
        says: what it means and why it matters.
        judged: how it is found, with the limits as fields: ``{max_growth:g}``.
        causes: the usual ones, the commonest first.
        actions: what to do.
        healthy: how it is where nothing is wrong, with computed values as fields.
    """

    title: str
    says: str
    judged: str
    causes: tuple[str, ...]
    actions: tuple[Action, ...]
    healthy: str


@dataclass(frozen=True)
class Fact:
    """A number of a page: read from the code that judges, or computed for the page."""

    name: str
    value: float | str
    unit: str = ""


@dataclass(frozen=True)
class Page:
    """A page with its numbers.

    Attributes:
        name: of its topic.
        kind: ``ALARM``, ``SIGNAL`` (a finding on a pass through the model) or ``WEIGHTS``.
        facts: the numbers in ``judged`` and ``healthy``.
    """

    name: str
    kind: str
    title: str
    says: str
    judged: str
    causes: tuple[str, ...]
    actions: tuple[Action, ...]
    healthy: str
    facts: tuple[Fact, ...]


def fields(*templates: str) -> list[str]:
    """Names of the numbers that templates ask for, each once."""
    found = [name for text in templates for _, name, _, _ in string.Formatter().parse(text)]
    return list(dict.fromkeys(name for name in found if name and name != "scheme"))


def filled(name: str, kind: str, topic: Topic, values: Mapping[str, float], scheme: str) -> Page:
    """A topic with its numbers; ``scheme`` is the name of that which healthy values follow."""
    known = {**values, "scheme": scheme}
    return Page(
        name, kind, topic.title, topic.says, topic.judged.format_map(known), topic.causes,
        topic.actions, topic.healthy.format_map(known),
        tuple(Fact(key, values[key]) for key in fields(topic.judged, topic.healthy)),
    )  # fmt: skip
