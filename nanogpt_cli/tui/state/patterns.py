"""Filters for names: plain text, glob, /regex/, and ! for not."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from nanogpt_cli import units


def matches(pattern: str, name: str) -> bool:
    """Whether every word of ``pattern`` matches ``name``; an empty pattern matches all.

    A word is a substring, a glob if it contains ``*`` or ``?``, or between slashes a regular
    expression (plain text if that is invalid). A leading ``!`` negates the word.
    """
    return all(_word_matches(word, name) for word in pattern.split())


def _word_matches(word: str, name: str) -> bool:
    if word.startswith("!") and len(word) > 1:
        return not _word_matches(word[1:], name)
    if len(word) > 2 and word.startswith("/") and word.endswith("/"):
        try:
            return re.search(word[1:-1], name) is not None
        except re.error:
            return word in name
    if "*" in word or "?" in word:
        return fnmatch.fnmatchcase(name.lower(), word.lower())
    return word.lower() in name.lower()


def select(pattern: str, names: Iterable[str]) -> list[str]:
    """The matching names in natural order: ``h.2`` before ``h.10``."""
    return sorted((name for name in names if matches(pattern, name)), key=units.natural)
