"""Telling how a text is encoded in Unicode: by its byte-order mark, or by the look of its bytes."""

from __future__ import annotations

import codecs
import unicodedata
from typing import Final

# Longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDE: Final = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
# Bytes that no 8-bit text has: control characters but for white space and escape sequences.
_CONTROLS: Final = bytes(b for b in range(32) if b not in b"\t\n\v\f\r\x1b")
# Some of these are in any text of more than a few words.
_SPACES: Final = frozenset(" \n\r\t\u3000\u3001\u3002\uff0c")
_SAMPLE: Final = 1 << 13


def marked(head: bytes) -> tuple[str, int]:
    """The encoding that a byte-order mark declares, and the mark's length; ``("", 0)`` without."""
    return next(((name, len(mark)) for mark, name in _MARKS if head.startswith(mark)), ("", 0))


def is_wide(encoding: str) -> bool:
    """Whether a text in this encoding may hold zero bytes."""
    return codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))


def guess(sample: bytes) -> str:
    """The encoding of a text in UTF-16 or UTF-32; ``""`` if the bytes look like anything else.

    Args:
        sample: the whole text, or at least its first 8 KiB; larger parts of it may begin anywhere
            between two characters.
    """
    if (declared := marked(sample)[0]) in _WIDE:
        return declared
    if len(sample) < _SAMPLE and len(sample) % 2:  # all of a text has whole units
        return ""
    sample = sample[:_SAMPLE]
    if 100 * (len(sample) - len(sample.translate(None, _CONTROLS))) < len(sample):
        return ""
    texts = {name: text for name in _WIDE if _is_plausible(text := _decoded(sample, name))}

    def variety(name: str) -> tuple[int, str]:
        return len({ord(c) >> 8 for c in texts[name]}), max(texts[name])

    # In the wrong byte order the low bytes select the script: it changes with every letter.
    return min(texts, key=variety, default="")


def _decoded(sample: bytes, encoding: str) -> str:
    """The sample's text, without a character that its end cuts; ``""`` if it is invalid."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return ""


def _is_plausible(text: str) -> bool:
    strange = sum(c not in _SPACES and unicodedata.category(c)[0] == "C" for c in text)
    spaces = sum(c in _SPACES for c in text)
    return bool(text) and 50 * strange <= len(text) and 100 * spaces >= len(text) - 100
