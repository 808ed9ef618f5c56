"""All pages by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.explain import alarms, concept, signals, values, weights
from nanogpt_cli.explain.concept import Concept, ConceptPage
from nanogpt_cli.explain.page import ALARM, SIGNAL, WEIGHTS, Page, Topic, fields, filled
from nanogpt_cli.explain.values import Shape

# Concept -> its module, in the order of the list.
CONCEPTS: Final[Mapping[str, str]] = {
    "init": "init_start", "std": "depth", "activation": "activation",
    "residual-scaling": "depth", "warmup": "steps", "bits-per-byte": "measures",
    "resume": "measures", "tying": "head", "muon": "steps", "mup": "width", "modern": "parts",
}  # fmt: skip
KINDS: dict[str, dict[str, Topic]] = {
    ALARM: alarms.TOPICS, SIGNAL: signals.TOPICS, WEIGHTS: weights.TOPICS,
}  # fmt: skip
LANGUAGES: Final = ("en", "de")


def names() -> list[str]:
    """Names of all pages: concepts, alarms, findings."""
    return [*CONCEPTS, *(name for topics in KINDS.values() for name in topics)]


def concept_of(name: str) -> Concept:
    """A concept by its name."""
    module = import_module(f"nanogpt_cli.explain.{CONCEPTS[name]}")
    found: Concept = module.CONCEPTS[name]
    return found


def page(name: str, shape: Shape | None = None, language: str = "en") -> Page | ConceptPage:
    """A page with its numbers.

    Args:
        name: of the topic; an alarm's kind is taken as well (``dead_units``).
        shape: the model whose values are shown.
        language: one of ``LANGUAGES``; English where the page has no other.

    Raises:
        UserError: there is no such page.
    """
    name, shape = name.strip().lower().replace("_", "-").replace(" ", "-"), shape or Shape()
    if name in CONCEPTS:
        return concept.filled(name, concept_of(name), shape.model(), language)
    for kind, topics in KINDS.items():
        if topic := topics.get(name):
            wanted = fields(topic.judged, topic.healthy)
            return filled(name, kind, topic, values.of(wanted, shape), shape.model().scheme.name)
    close = nearest(name, names())
    hint = f"did you mean {close}? " if close else ""
    raise UserError(f"there is no topic {name!r}", f"{hint}nanogpt explain lists all")
