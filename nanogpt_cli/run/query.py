"""The filter of run lists: ``state:running lr>=1e-3 model.init=gpt2 -note:try tag:baseline``.

Terms are separated by spaces, and all of them must hold. A term is

- a word or a pattern with ``*`` and ``?``, looked for in the run's name;
- ``field:text``: the field holds the text; of ``tag`` and ``state``, is it;
- ``field=value``, ``field!=value``: equal or not, numbers as numbers;
- ``field<number``, ``<=``, ``>``, ``>=``; ``10k`` and, of ``age``, ``90s``, ``3h``, ``2d``.

``a,b`` after ``:`` or ``=`` means a or b, a ``-`` or ``!`` before a term means not, and quotes keep
words together: ``note:"warm start"``. Fields are those of ``FIELDS`` and the keys of the run's
recipe, in full or by their last part: ``optim.lr``, ``lr``.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nanogpt_cli.errors import UserError, nearest

# Field -> what it is.
FIELDS: Final = {
    "name": "name of the run", "state": "its state in a word", "tag": "one of its tags",
    "note": "its note", "step": "optimizer steps made", "loss": "last training loss",
    "best": "lowest validation loss", "speed": "tokens per second", "alarms": "active alarms",
    "age": "time since it began", "parameters": "parameters of the model",
}  # fmt: skip
LONGEST: Final = 1000  # characters of a query
_EXACT: Final = ("state", "tag")
_TERM: Final = re.compile(r'(?:[^\s"]|"[^"]*")+')
_PARTS: Final = re.compile(r"([A-Za-z_][\w.]*)(:|!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_NUMBER: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([A-Za-z]?)")
_SCALES: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_SECONDS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_ORDER: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}  # fmt: skip

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Term:
    """One condition; a plain word has no field."""

    field: str
    sign: str
    wanted: tuple[str, ...]
    negated: bool

    def holds(self, values: Values) -> bool:
        """Whether a run with these values meets the condition."""
        return self._plain(values) != (self.negated != (self.sign == "!="))

    def _plain(self, values: Values) -> bool:
        if not self.field:
            return any(_contains(str(values.get("name", "")), word) for word in self.wanted)
        found = [item for value in _lookup(values, self.field) for item in _items(value)]
        if self.sign in _ORDER:
            limit = _number(self.wanted[0], self.field)
            assert limit is not None
            compare = _ORDER[self.sign]
            numbers = (_as_number(value) for value in found)
            return any(number is not None and compare(number, limit) for number in numbers)
        exact = self.sign != ":" or self.field in _EXACT
        test = _equals if exact else _contains_value
        return any(test(value, word, self.field) for value in found for word in self.wanted)


@dataclass(frozen=True)
class Query:
    """Conditions that must all hold; one without any holds for every run."""

    terms: tuple[Term, ...] = ()

    def holds(self, values: Values) -> bool:
        """Whether a run with these values is meant.

        Args:
            values: a value of each of ``FIELDS``, and those of the recipe by dotted key.
        """
        return all(term.holds(values) for term in self.terms)

    def check_fields(self, known: Iterable[str]) -> None:
        """Refuse a field that neither ``FIELDS`` nor a key in ``known`` has.

        Raises:
            UserError: the message names the field and the nearest known one.
        """
        names = {*FIELDS, *known}
        ends = names | {name.rpartition(".")[2] for name in names}
        for term in self.terms:
            if term.field and term.field not in ends:
                close = nearest(term.field, sorted(ends))
                hint = f"did you mean {close}?" if close else f"fields: {', '.join(FIELDS)}"
                raise UserError(f"no run has a field {term.field!r:.80}", hint)


def parse(text: str) -> Query:
    """The conditions of a query.

    Raises:
        UserError: it is not one; the message is one line and names the term.
    """
    if len(text) > LONGEST:
        raise UserError(f"the filter has more than {LONGEST:,} characters", "shorten it")
    if text.count('"') % 2:
        raise UserError("the filter has a quote without its end", 'write note:"two words"')
    return Query(tuple(_term(word) for word in _TERM.findall(text)))


def _term(word: str) -> Term:
    body = word[1:] if word[0] in "-!" and not _is_number(word) else word
    negated = body is not word
    if not body.replace('"', ""):
        raise UserError(f"{word!r:.80} in the filter has nothing to look for", "-word leaves out")
    parts = None if body.startswith('"') else _PARTS.fullmatch(body)
    if parts is None:
        return Term("", "", (body.replace('"', ""),), negated)
    field, sign, value = parts.groups()
    wanted = _alternatives(value) if sign in (":", "=", "!=") else (value.replace('"', ""),)
    if not wanted or not all(wanted):
        raise UserError(f"{word!r:.80} in the filter has no value", f"write {field}{sign}VALUE")
    if sign in _ORDER and _number(wanted[0], field) is None:
        kind = "12m, 3h or 2d" if field == "age" else "1e-3, 10k or 3M"
        raise UserError(f"{word!r:.80} in the filter needs a number", f"such as {kind}")
    return Term(field, sign, wanted, negated)


def _alternatives(text: str) -> tuple[str, ...]:
    """The words between commas, those in quotes aside."""
    parts = re.findall(r'(?:[^,"]|"[^"]*")+', text)
    empty = text.startswith(",") or text.endswith(",") or ",," in re.sub(r'"[^"]*"', "q", text)
    return () if empty else tuple(part.replace('"', "") for part in parts)


def _is_number(word: str) -> bool:
    return _NUMBER.fullmatch(word) is not None


def _number(text: str, field: str = "") -> float | None:
    """A number with a suffix; ``None`` if it is none."""
    if text.lower().lstrip("+-") in ("inf", "infinity", "nan"):
        return float(text)
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    scale = (_SECONDS if field == "age" else _SCALES).get(found.group(2))
    return None if scale is None else float(found.group(1)) * scale


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _lookup(values: Values, field: str) -> list[Any]:
    """The values of a field: by its own name, else of every key that ends in it."""
    if field in values:
        return [values[field]]
    if field in FIELDS:
        return []
    return [value for key, value in values.items() if key.rpartition(".")[2] == field]


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _equals(value: Any, word: str, field: str) -> bool:
    number, wanted = _as_number(value), _number(word, field)
    if number is not None and wanted is not None:
        return number == wanted or (math.isnan(number) and math.isnan(wanted))
    if value is None:
        return word.lower() == "none"
    return fnmatch.fnmatchcase(str(value).lower(), word.lower())


def _contains_value(value: Any, word: str, field: str) -> bool:
    if not isinstance(value, str):
        return _equals(value, word, field)
    return _contains(value, word)


def _contains(text: str, word: str) -> bool:
    text, word = text.lower(), word.lower()
    if "*" in word or "?" in word:
        return fnmatch.fnmatchcase(text, word)
    return word in text


def flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe by dotted key, ``optim.lr``; deeper tables than its two are text."""
    found: dict[str, Any] = {}
    for section, values in recipe.items():
        if isinstance(values, Mapping):
            found |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            found[str(section)] = values
    return found
