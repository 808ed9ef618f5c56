"""Text from outside, made harmless for a terminal and writable in a console's encoding.

Names, logs, recipes, vocabularies and what a model writes may hold anything: escape sequences that
retitle a window, fill the clipboard or repaint the screen, and marks that reverse the order of what
is read. ``printable`` shows such characters instead of sending them.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable
from functools import cache
from typing import Final, TextIO

from nanogpt_cli.errors import UserError

_HAZARDS: Final = (
    "\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: escape sequences begin with them
    "\xad\u061c\u180e\u200b\u200e\u200f"  # invisible, or changing the direction of what follows
    "\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufffe\uffff"  # not characters: neither UTF-8 nor XML can represent all of them
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
# ASCII replacements of the symbols that this program prints, for consoles without Unicode.
_PLAIN: Final = str.maketrans({
    "─": "-", "━": "-", "╌": "-", "┅": "-", "–": "-", "—": "-", "−": "-", "│": "|", "┃": "|",
    "┤": "+", "┼": "+", "├": "+", "╭": "+", "╮": "+", "╯": "+", "╰": "+", "╶": "-", "╴": "-",
    "╸": "-", "╺": "-", "·": ".", "…": "...", "×": "x", "→": "->", "←": "<-", "↓": "v", "↑": "^",
    "≥": ">=", "≤": "<=", "≈": "~", "±": "+-", "✓": "ok", "✗": "x", "✖": "x", "⏎": "\\n",
    "▲": "!", "▼": "v", "●": "*", "○": "o", "■": "#", "◆": "o", "★": "*",
    "█": "#", "▓": "%", "▒": "+", "░": ".", "‘": "'", "’": "'", "“": '"', "”": '"',
})  # fmt: skip
_ENCODABLE: Final = "nanogpt-plain"


def _visible(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else _unicode_escape(character)


def _unicode_escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(character: str) -> str:
    """JSON's escape: a surrogate pair for a character beyond U+FFFF."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def printable(text: str, keep: str = "\n\t", shown: Callable[[str], str] = _visible) -> str:
    r"""The text with control characters, direction marks and the like as ``\x1b``, ``\u202e``, …

    Args:
        text: anything; printable text comes back as it is.
        keep: control characters to leave as they are.
        shown: gives the replacement of a character.
    """
    if text.isprintable():
        return text
    return _hazards(keep).sub(lambda found: shown(found.group()), text)


@cache
def _hazards(keep: str) -> re.Pattern[str]:
    return re.compile(f"(?![{re.escape(keep)}])[{_HAZARDS}]" if keep else f"[{_HAZARDS}]")


def json_escaped(text: str, encoding: str | None = "utf-8") -> str:
    r"""The same JSON value, escaped (``\u001b``, ``\u202e``) so that the terminal can show it.

    Args:
        text: JSON; only its strings can hold such characters.
        encoding: encoding of the stream that the text goes to.
    """
    return _escaped(text, encoding, _json_escape)


def toml_escaped(text: str, encoding: str | None = "utf-8") -> str:
    """``json_escaped`` for TOML with basic strings (``"…"``), which ``tomli_w`` writes."""
    return _escaped(text, encoding, _unicode_escape)


def _escaped(text: str, encoding: str | None, escape: Callable[[str], str]) -> str:
    text = printable(text, shown=escape)
    if encodes(text, encoding):
        return text
    return "".join(c if encodes(c, encoding) else escape(c) for c in text)


def encodes(text: str, encoding: str | None) -> bool:
    """Whether an encoding has all these characters; an unknown one (None) is assumed to."""
    if not encoding or text.isascii():
        return True
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def draws(stream: TextIO | None) -> bool:
    """Whether a stream can show the braille and line characters of charts.

    Its encoding must have them, and Linux's own console has no font with braille.
    """
    if os.environ.get("TERM") == "linux" and stream is not None and stream.isatty():
        return False
    return encodes("⣿─●█", getattr(stream, "encoding", None))


def encodable(text: str, encoding: str | None) -> str:
    r"""The text with characters that the encoding lacks replaced: ``->``, ``\u28c0``, …"""
    if encodes(text, encoding):
        return text
    assert encoding is not None
    return text.encode(encoding, _ENCODABLE).decode(encoding)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    shown = (c.translate(_PLAIN) for c in lacking)
    return "".join(p if p.isascii() else _visible(p) for p in shown), error.end


codecs.register_error(_ENCODABLE, _replace)


def checked(text: str, what: str) -> str:
    """Text of a command line or a JSON file, checked to be encodable as UTF-8.

    In the C locale Python passes on the bytes of UTF-8 one by one; they are decoded here.

    Args:
        text: what was given.
        what: what to call it in the message, such as ``--prompt``.

    Raises:
        UserError: it holds bytes that are not UTF-8, or half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        place = error.start + 1
    else:
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise UserError(
            f"{what} is not UTF-8 text: character {place}, {text[place - 1]!r}, is a byte of "
            "another encoding or half a surrogate pair",
            "write it in UTF-8",
        ) from None


def storable(name: str) -> str:
    r"""A file name for a manifest: bytes that are not UTF-8 become ``\udce9``, the rest stays."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
