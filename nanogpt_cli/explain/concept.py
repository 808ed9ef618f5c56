"""Concepts: pages that answer a question with sentences whose numbers are computed when asked."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from nanogpt_cli.explain.page import Action, Fact
from nanogpt_cli.explain.values import Model

CONCEPT: Final = "concept"
TRUE, FALSE, HALF = "true", "false", "half true"
Value = float | str


@dataclass(frozen=True)
class ClaimWords:
    """What is often claimed: the name of its verdict, the claim, and what was found instead."""

    name: str
    text: str
    why: str


@dataclass(frozen=True)
class PictureWords:
    """Title of a picture and the names of its curves, the first one drawn as a line."""

    title: str
    curves: tuple[str, ...]
    log_y: bool = False
    x_axis: str = "block"


@dataclass(frozen=True)
class Words:
    """A concept's text in one language; ``{name:format}`` stands for a value.

    Of a truth value, ``{name:this|that}`` writes the first text if it is true, else the second.

    Attributes:
        question: what the page answers.
        paragraphs: the answer.
        actions: what shows more.
        table: rows of cells, the first one the heads; empty for none.
        picture: what is drawn, if anything.
        claims: what is often said of it.
        after: sentences below table and picture.
    """

    question: str
    paragraphs: tuple[str, ...]
    actions: tuple[Action, ...]
    table: tuple[tuple[str, ...], ...] = ()
    picture: PictureWords | None = None
    claims: tuple[ClaimWords, ...] = ()
    after: tuple[str, ...] = ()

    def templates(self) -> Iterator[str]:
        """Every text of the page."""
        yield from (self.question, *self.paragraphs, *self.after)
        for row in self.table:
            yield from row
        if self.picture:
            yield from (self.picture.title, *self.picture.curves)
        for claim in self.claims:
            yield from (claim.text, claim.why)
        for action in self.actions:
            yield from (action.text, action.command)


@dataclass(frozen=True)
class Found:
    """What a concept computes for a model.

    Attributes:
        values: by the names that its texts use.
        verdicts: of its claims, by name.
        curves: of its picture, in the order of their names; all of one length.
        units: of values that have one.
    """

    values: Mapping[str, Value]
    verdicts: Mapping[str, str] = field(default_factory=dict)
    curves: tuple[tuple[float, ...], ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Concept:
    """Texts by language, of which English is always one, and what computes their numbers.

    ``of_model`` tells whether these are of the model that is named, or hold for all.
    """

    words: Mapping[str, Words]
    compute: Callable[[Model], Found]
    of_model: bool = True

    @property
    def question(self) -> str:
        """The English question."""
        return self.words["en"].question


@dataclass(frozen=True)
class Claim:
    """A claim, its verdict (``TRUE``, ``FALSE`` or ``HALF``) and the numbers behind it."""

    text: str
    verdict: str
    why: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Curve:
    """A line of a picture; x counts from 0."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Picture:
    """A chart."""

    title: str
    curves: tuple[Curve, ...]
    log_y: bool
    x_axis: str


@dataclass(frozen=True)
class ConceptPage:
    """A concept with its numbers, for one model and in one language."""

    name: str
    kind: str
    question: str
    language: str
    model: str
    paragraphs: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    picture: Picture | None
    claims: tuple[Claim, ...]
    after: tuple[str, ...]
    actions: tuple[Action, ...]
    facts: tuple[Fact, ...]


def filled(name: str, concept: Concept, model: Model, language: str = "en") -> ConceptPage:
    """The page of a concept; English where it has no text in ``language``."""
    language = language if language in concept.words else "en"
    words, found = concept.words[language], concept.compute(model)
    known: dict[str, Value] = {**model.values(), **found.values}

    write = _German() if language == "de" else _English()

    def fill(text: str) -> str:
        return write.vformat(text, (), known)

    def facts(*texts: str) -> tuple[Fact, ...]:
        return tuple(Fact(key, known[key], found.units.get(key, "")) for key in _fields(*texts))

    drawn = words.picture
    picture = None if drawn is None else Picture(
        fill(drawn.title),
        tuple(Curve(fill(n), v) for n, v in zip(drawn.curves, found.curves, strict=True)),
        drawn.log_y, drawn.x_axis,
    )  # fmt: skip
    return ConceptPage(
        name, CONCEPT, fill(words.question), language,
        model.described(language) if concept.of_model else "",
        tuple(map(fill, words.paragraphs)),
        tuple(tuple(map(fill, row)) for row in words.table),
        picture,
        tuple(Claim(fill(c.text), found.verdicts[c.name], fill(c.why), facts(c.text, c.why))
              for c in words.claims),
        tuple(map(fill, words.after)),
        tuple(Action(fill(a.text), fill(a.command)) for a in words.actions),
        facts(*words.templates()),
    )  # fmt: skip


class _English(string.Formatter):
    """Numbers as Python writes them, but for ∞ and for what is not known."""

    def format_field(self, value: object, format_spec: str) -> str:
        if isinstance(value, bool):
            return format_spec.split("|")[not value]
        if isinstance(value, float) and not math.isfinite(value):
            return "–" if math.isnan(value) else "∞"
        text: str = super().format_field(value, format_spec)
        return text


class _German(_English):
    """Numbers with a decimal comma, and a space before the percent sign."""

    def format_field(self, value: object, format_spec: str) -> str:
        text = super().format_field(value, format_spec)
        if isinstance(value, float):
            text = text.replace(",", " ").replace(".", ",").replace("%", " %")
        return text


def _fields(*templates: str) -> list[str]:
    found = [name for text in templates for _, name, _, _ in string.Formatter().parse(text)]
    return list(dict.fromkeys(name for name in found if name))
