"""The exception for everything that the user can fix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """Something the user can fix: a bad value, a missing file, a full disk.

    The CLI renders it as one message and one hint on stderr and exits with code 2.
    Our own invariants use ``assert`` or the built-in exceptions instead.

    Args:
        message: what is wrong, naming the file, key or position.
        hint: what to do about it; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


@contextlib.contextmanager
def naming(source: object) -> Iterator[None]:
    """Prefix any ``UserError`` raised inside with ``source``, the file that it is about.

    One that names it already stays as it is.
    """
    try:
        yield
    except UserError as error:
        if error.message.startswith(f"{source}: "):
            raise
        raise UserError(f"{source}: {error.message}", error.hint) from error


def in_words(error: Exception) -> str:
    """What a library found wrong with a file, in one line; Python's own words explain nothing."""
    if isinstance(error, UnicodeError):
        return "what should be text in it is not"
    if isinstance(error, LookupError | TypeError | AttributeError):  # such as "list index"
        return "its parts do not fit together"
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and text.startswith(("invalid literal", "could not convert")):
        return "what should be a number in it is none"
    return text[:160]


def nearest(word: str, known: Iterable[str]) -> str:
    """The entry of ``known`` most similar to ``word``; ``""`` if none is close."""
    import difflib

    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else ""
