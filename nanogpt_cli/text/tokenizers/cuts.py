"""Where a long text may be cut so that its chunks, tokenized alone, give the tokens of the whole.

A byte-pair encoding first splits text into words by a pattern and never merges across words. The
patterns of GPT-2, cl100k and o200k all end a word where a letter or digit is followed by white
space or by one of the punctuation marks below, whatever the context; the apostrophe and combining
marks are not among them. Cutting only there is exact. The tests compare cut and whole encodings for
each of these patterns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer

BLOCK: Final = 1 << 19  # approximate bytes of text in a chunk
HEAD: Final = 1 << 16  # only a document's last chunk may be shorter
LIMIT: Final = 1 << 22  # a text without a safe place to cut is cut anyway after this many bytes

_ASCII = re.compile(rb"[A-Za-z0-9](?=[ \n\t\r.,;:!?])")
_UNICODE = re.compile(
    r"[^\W_](?=[ \n\t\r.,;:!?\u2026\u3000-\u3003\u3008-\u3011\uff01\uff0c\uff1a-\uff1f])"
)
_DIGIT = re.compile(rb"[a-z](?=[0-9])")
_CHECKED_CONTEXT: Final = 256  # bytes on either side of a cut that is checked by encoding
_CHECKED_TRIES: Final = 16
REACH: Final = 500  # characters by which the cut between train and validation may be moved

Cutter = Callable[[bytearray], int]


def cutter(tokenizer: Tokenizer | None) -> Cutter:
    """The function that finds the last safe cut in a buffer: a byte offset, or 0 if none is safe.

    Args:
        tokenizer: None for a character vocabulary that is still being collected.
    """
    if tokenizer is None or tokenizer.cut_rule == "characters":
        return character_cut
    if tokenizer.cut_rule == "words":
        return word_cut
    return lambda buffer: _checked_cut(buffer, tokenizer)


def character_cut(buffer: bytearray) -> int:
    """The last offset that does not split a UTF-8 sequence."""
    end = len(buffer)
    for back in range(1, min(4, end) + 1):
        byte = buffer[end - back]
        if byte < 0x80:
            return end
        if byte >= 0xC0:
            return end - back
    return end


def word_cut(buffer: bytearray) -> int:
    """The last offset in the buffer where every supported word pattern ends a word."""
    for size in (1 << 10, 1 << 15):
        start = max(HEAD, len(buffer) - size)
        if cut := _last(_ASCII, buffer, start):
            return cut
    return _last(_ASCII, buffer, HEAD) or _last_unicode(buffer, HEAD) or _last(_DIGIT, buffer, HEAD)


def _last(pattern: re.Pattern[bytes], buffer: bytearray, start: int) -> int:
    cut = 0
    for match in pattern.finditer(buffer, start):
        cut = match.end()
    return cut


def _last_unicode(buffer: bytearray, start: int) -> int:
    text = buffer[start:].decode("utf-8", "surrogateescape")
    cut = 0
    for match in _UNICODE.finditer(text):
        cut = match.end()
    return start + len(text[:cut].encode("utf-8", "surrogateescape")) if cut else 0


def _checked_cut(buffer: bytearray, tokenizer: Tokenizer) -> int:
    """A cut verified by encoding its surroundings, for vocabularies with an unknown pattern."""
    tail = max(HEAD, len(buffer) - (1 << 15))
    # A token that the text spells out may go on behind the cut: enough of it must be there.
    known = max(0, len(buffer) - _CHECKED_CONTEXT)
    cuts = [match.end() for match in _ASCII.finditer(buffer, tail, known)]
    for cut in reversed(cuts[-_CHECKED_TRIES:]):
        left = buffer[max(0, cut - _CHECKED_CONTEXT) : cut].decode("utf-8", "ignore")
        right = buffer[cut : cut + _CHECKED_CONTEXT].decode("utf-8", "ignore")
        if _stays(left, right, tokenizer):
            return cut
    return 0


def _stays(left: str, right: str, tokenizer: Tokenizer) -> bool:
    """Whether a cut between these changes no token."""
    encode = tokenizer.encode
    return encode(left + right) == encode(left) + encode(right)


def near(text: str, at: int, places: range, tokenizer: Tokenizer) -> Iterator[int]:
    """Where a text may be cut near a character, the best place first.

    Args:
        text: of which the surroundings of a place are encoded to judge it.
        at: the first place, judged by nobody.
        places: the others: those at white space come before those within words, and each in the
            order of their distance.
        tokenizer: of the text.
    """

    def worse(place: int) -> tuple[bool, int]:
        within = text[place - 1 : place].isspace() == text[place : place + 1].isspace()
        return within, abs(place - at)

    yield at
    for place in sorted(places, key=worse):
        left = text[max(0, place - _CHECKED_CONTEXT) : place]
        if place != at and _stays(left, text[place : place + _CHECKED_CONTEXT], tokenizer):
            yield place
