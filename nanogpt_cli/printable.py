"""Text from outside, made harmless for a terminal and writable in a console's encoding.

Names, logs, recipes, vocabularies and what a model writes may hold anything: escape sequences that
retitle a window, fill the clipboard or repaint the screen, and marks that reverse the order of what
is read. ``printable`` shows such characters instead of sending them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from functools import cache
from typing import Final

from nanogpt_cli.errors import UserError

_HAZARDS: Final = (
    "\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: escape sequences begin with them
    "\xad\u061c\u180e\u200b\u200e\u200f"  # invisible, or turning the direction of what follows
    "\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufffe\uffff"  # no characters: UTF-8 has no form for them, XML none either
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
# What a console without Unicode shows for the signs this program uses itself.
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
    """As JSON has it: a pair of surrogates beyond the first plane."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def printable(text: str, keep: str = "\n\t", shown: Callable[[str], str] = _visible) -> str:
    r"""The text with control characters, direction marks and the like as ``\x1b``, ``\u202e``, …

    Args:
        text: anything; printable text comes back as it is.
        keep: control characters that may stay.
        shown: what takes the place of a character.
    """
    if text.isprintable():
        return text
    return _hazards(keep).sub(lambda found: shown(found.group()), text)


@cache
def _hazards(keep: str) -> re.Pattern[str]:
    return re.compile(f"(?![{re.escape(keep)}])[{_HAZARDS}]" if keep else f"[{_HAZARDS}]")


def json_escaped(text: str, encoding: str | None = "utf-8") -> str:
    r"""JSON of the same value that any terminal of this encoding can show: ``\u001b``, ``\u202e``.

    Args:
        text: JSON; only its strings can hold such characters.
        encoding: of the stream that the text goes to.
    """
    return _escaped(text, encoding, _json_escape)


def toml_escaped(text: str, encoding: str | None = "utf-8") -> str:
    """The same of TOML whose strings are basic ones (``"…"``), as ``tomli_w`` writes them."""
    return _escaped(text, encoding, _unicode_escape)


def _escaped(text: str, encoding: str | None, escape: Callable[[str], str]) -> str:
    text = printable(text, shown=escape)
    if encodes(text, encoding):
        return text
    return "".join(c if encodes(c, encoding) else escape(c) for c in text)


def encodes(text: str, encoding: str | None) -> bool:
    """Whether an encoding has all these characters; one that is unknown (None) has them."""
    if not encoding or text.isascii():
        return True
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def encodable(text: str, encoding: str | None) -> str:
    r"""The text with ``->`` or ``\u28c0`` in the place of an arrow or dots the encoding lacks."""
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
    """Text of a command line or a JSON file that can be written down as UTF-8.

    Where the locale is C, Python passes on the bytes of UTF-8 one by one; they are put together.

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
    r"""A file's name for a manifest: bytes that are not UTF-8 as ``\udce9``, the rest as it is."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
