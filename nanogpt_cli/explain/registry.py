"""All pages by name."""

from __future__ import annotations

from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.explain import alarms, signals, values, weights
from nanogpt_cli.explain.page import ALARM, SIGNAL, WEIGHTS, Page, Topic, fields, filled
from nanogpt_cli.explain.values import Shape

KINDS: dict[str, dict[str, Topic]] = {
    ALARM: alarms.TOPICS, SIGNAL: signals.TOPICS, WEIGHTS: weights.TOPICS,
}  # fmt: skip


def names() -> list[str]:
    """Names of all pages, alarms first."""
    return [name for topics in KINDS.values() for name in topics]


def page(name: str, shape: Shape | None = None) -> Page:
    """A page with its numbers.

    Args:
        name: of the topic; an alarm's kind is taken as well (``dead_units``).
        shape: the model whose healthy values are shown.

    Raises:
        UserError: there is no such page.
    """
    name = name.strip().lower().replace("_", "-").replace(" ", "-")
    for kind, topics in KINDS.items():
        if topic := topics.get(name):
            shape, wanted = shape or Shape(), fields(topic.judged, topic.healthy)
            return filled(name, kind, topic, values.of(wanted, shape), shape.init)
    close = nearest(name, names())
    hint = f"did you mean {close}? " if close else ""
    raise UserError(f"there is no topic {name!r}", f"{hint}nanogpt explain lists all")
