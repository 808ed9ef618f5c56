"""Characters that a vocabulary lacks: reporting, skipping or replacing them."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from typing import Literal

from nanogpt_cli.errors import UserError
from nanogpt_cli.text.tokenizers.tokenizer import CharTokenizer, Tokenizer

Policy = Literal["error", "skip", "replace"]
_MOST_NAMED = 10  # characters of which a sentence is said; a text in another script has thousands

# Typographic marks that Unicode does not decompose, and their plain equivalents.
_PLAIN = {
    "‘": "'", "’": "'", "‚": ",", "‛": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"',
    "‹": "'", "›": "'", "–": "-", "—": "-", "―": "-", "−": "-", "‐": "-", "‑": "-", "•": "-",
    "×": "x", "÷": "/", "ß": "s", "æ": "a", "Æ": "A", "œ": "o", "Œ": "O", "ø": "o", "Ø": "O",
    "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "þ": "t", "Þ": "T", "\t": " ", "\r": "\n",
    '"': "'", "`": "'", "[": "(", "]": ")", "{": "(", "}": ")", "<": "(", ">": ")",
}  # fmt: skip


def nearest(character: str, known: Collection[str]) -> str:
    """The character of ``known`` most similar to ``character``, or ``""``.

    Tries the letter without its marks, its plain typographic form, and either in the other case;
    any white space may become a blank or a newline.
    """
    plain = _PLAIN.get(character, character)
    bases = [plain, _PLAIN.get(plain, plain), unicodedata.normalize("NFKD", character)[0]]
    candidates = [form for base in bases for form in (base, base.swapcase())]
    if character.isspace():
        candidates += [" ", "\n"]
    return next((c for c in candidates if c in known and c != character), "")


def encode(tokenizer: Tokenizer, text: str, policy: Policy) -> tuple[list[int], list[str]]:
    """Ids of ``text``, and sentences about the unknown characters that were skipped or replaced.

    Args:
        tokenizer: any tokenizer; only those of characters can lack one.
        text: the text to encode.
        policy: "error" refuses unknown characters; "skip" leaves them out; "replace" takes the
            nearest known one and leaves out those that have none.

    Raises:
        UserError: under "error", the text has unknown characters; each is named with positions.
    """
    if not isinstance(tokenizer, CharTokenizer):
        return tokenizer.encode(text), []
    known = set(tokenizer.characters)
    places: dict[str, list[int]] = {}
    for position, character in enumerate(text):
        if character not in known:
            places.setdefault(character, []).append(position)
    if not places:
        return tokenizer.encode(text), []
    if policy == "error":
        raise _refusal(places, known)
    substitutes = {c: nearest(c, known) if policy == "replace" else "" for c in places}
    repaired = "".join(substitutes.get(character, character) for character in text)
    said = [
        f"{_named(c)} at {_positions(places[c])}: " + (f"read as {s!r}" if s else "left out")
        for c, s in list(substitutes.items())[:_MOST_NAMED]
    ]
    if (more := len(substitutes) - _MOST_NAMED) > 0:
        said.append(f"and {more:,} more that the vocabulary lacks, treated alike")
    return tokenizer.encode(repaired), said


def _refusal(places: dict[str, list[int]], known: Collection[str]) -> UserError:
    described = []
    for character, positions in list(places.items())[:5]:
        near = nearest(character, known)
        described.append(
            f"{_named(character)} at {_positions(positions)}"
            + (f" (nearest: {near!r})" if near else " (nothing similar)")
        )
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    return UserError(
        f"the prompt holds characters this vocabulary lacks: {', '.join(described)}{more}",
        "--on-unknown replace uses the nearest ones, --on-unknown skip leaves them out",
    )


def _named(character: str) -> str:
    return f"{character!r} (U+{ord(character):04X})"


def _positions(positions: list[int]) -> str:
    shown = ", ".join(str(position) for position in positions[:4])
    return f"position {shown}" + (", …" if len(positions) > 4 else "")
