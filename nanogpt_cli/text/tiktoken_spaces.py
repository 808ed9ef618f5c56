"""White space longer than tiktoken can match, encoded as tiktoken would.

Before a word, all of its patterns match white space but its last character by ``\\s+(?!\\S)``. The
engine stores a backtracking position for each character and fails after a million; no other part of
the patterns does. Such a run is one word, so it is encoded as one, without the pattern, and the
texts before and after it are encoded separately.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from nanogpt_cli.text.tokenizer import Tokens

if TYPE_CHECKING:
    import tiktoken

LONGEST: Final = 100_000  # any length is exact; the engine's limit is ten times this
_NEWLINES: Final = "\n\r"
# White space as Unicode and Rust define it; Python's has four control characters more.
_BLANKS: Final = "\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

Span = tuple[int, int]


def find(text: str, pattern: str) -> list[Span]:
    """Where in ``text`` white space of more than 100,000 characters is a single word.

    Args:
        text: any text.
        pattern: of a tiktoken encoding. cl100k's and o200k's end a word at newlines.
    """
    ends_at_newlines = r"\s*[\r\n]" in pattern
    inside = _BLANKS if ends_at_newlines else _BLANKS + _NEWLINES
    found = []
    for match in re.finditer(f"[{inside}]{{{LONGEST},}}+", text):
        start, end = match.span()
        if end < len(text):
            if text[end] in _NEWLINES:
                continue  # another part of the pattern matches this word, newlines included
            end -= 1  # the last character belongs to the next word
        elif r"\s++$" in pattern:
            continue  # this part of the pattern, for the end of a text, has no limit
        found.append((start, end))
    return found


def encode(text: str, encoding: tiktoken.Encoding, spans: list[Span]) -> Tokens:
    """The ids of ``text``, each of ``spans`` (from ``find``) taken as one word. Shape (tokens,)."""
    parts, done = [], 0
    for start, end in spans:
        parts.append(encoding.encode_to_numpy(text[done:start], disallowed_special=()))
        word = text[start:end].encode("utf-8")
        parts.append(np.array(encoding._encode_single_piece(word), dtype=np.uint32))
        done = end
    parts.append(encoding.encode_to_numpy(text[done:], disallowed_special=()))
    return np.concatenate(parts)
