"""Comparison of recipes, as nested mappings, key by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nanogpt_cli import units

MISSING = "–"


def flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values: ``("optim.lr", 0.001)``."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing(recipes: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Keys whose values are not the same in all recipes, in natural order."""
    tables = [dict(flat(recipe)) for recipe in recipes]
    keys = sorted({key for table in tables for key in table}, key=units.natural)
    rows = [(key, [table.get(key, MISSING) for table in tables]) for key in keys]
    return [(key, values) for key, values in rows if any(v != values[0] for v in values)]


def short(value: Any) -> str:
    """A recipe value, shortened to 24 characters."""
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 24 else text[:23] + "…"
