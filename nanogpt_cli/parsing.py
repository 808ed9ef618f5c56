"""JSON and TOML that somebody else may have written.

Parsed values are nested at most 64 deep, their integers have at most 64 bits, and their strings can
be encoded as UTF-8. Time and memory grow with the length of the text alone.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any, Final, NoReturn

LARGEST_RECIPE: Final = 1 << 16  # characters of a TOML text
DEEPEST: Final = 64
# Most values in one JSON text: each takes about 100 bytes of memory, however short its text.
_MOST_VALUES: Final = 6_000_000
# A dotted key of 64 parts; tomllib's time and memory grow with the square of their number.
_LONG_KEY = re.compile(
    r"""(?:^|[\[{,])[ \t]*(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){64}""", re.MULTILINE
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_TOO_LONG: Final = "it holds a whole number of more than 64 bits"


def parse_json(text: str | bytes, *, lenient: bool = False, long_numbers: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: in UTF-8 where it is bytes.
        lenient: allow NaN, infinities and halves of surrogate pairs; for records of which only
            one field is used, and checked separately.
        long_numbers: make a whole number of more than 18 digits a float instead of refusing it.

    Raises:
        ValueError: it is not JSON, or exceeds a limit of this module; the message is one line.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    text = text.removeprefix("\ufeff")
    brackets = text.count("[") + text.count("{")
    if brackets + text.count(",") > _MOST_VALUES:
        raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
    try:
        decoder = _LENIENT if lenient else _LONG_NUMBERS if long_numbers else _STRICT
        value = decoder.decode(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from None
    halves = not lenient and "\\u" in text and _SURROGATE.search(text)
    if brackets > DEEPEST or halves:  # otherwise no value can exceed a limit
        _check_values(value, lenient=lenient)
    return value


def parse_first(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at ``start``, and where it ends; lenient as ``parse_json``.

    Raises:
        json.JSONDecodeError: there is none, or it goes on after the end of ``text``.
        ValueError: it is nested too deep.
    """
    try:
        return _LENIENT.raw_decode(text, start)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        ValueError: it is not TOML, or exceeds a limit of this module; the message is one line.
    """
    if len(text) > LARGEST_RECIPE:
        raise ValueError(f"it has more than {LARGEST_RECIPE:,} characters")
    if _LONG_KEY.search(text):
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # int() refuses thousands of digits
        raise ValueError(_TOO_LONG + _line_of_number(text)) from None
    _check_values(values)
    return values


def _line_of_number(text: str) -> str:
    """Where a number with thousands of digits stands."""
    found = re.search(r"\d[\d_]{4300}", text)
    return f" (line {text.count(chr(10), 0, found.start()) + 1})" if found else ""


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _whole(digits: str) -> int:
    value = int(digits[:30])
    if len(digits) > 18 and not _fits(value):
        raise ValueError(_TOO_LONG)
    return value


def _fits(value: int) -> bool:
    return -(1 << 63) <= value < 1 << 64


def _whole_or_float(digits: str) -> int | float:
    return int(digits) if len(digits) <= 18 else float(digits)


_LONG_NUMBERS: Final = json.JSONDecoder(parse_int=_whole_or_float, parse_constant=_no_constant)
_STRICT: Final = json.JSONDecoder(parse_int=_whole, parse_constant=_no_constant)
# Nobody reads the numbers of a record; int() would refuse one of more than 4,300 digits.
_LENIENT: Final = json.JSONDecoder(parse_int=lambda digits: int(digits[:1000]))


def _check_values(value: Any, *, lenient: bool = False) -> None:
    """Refuse values that later code cannot handle; by level, since recursion could overflow."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                inner += item
            elif not lenient:
                _check_plain(item)
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def _check_plain(item: object) -> None:
    if isinstance(item, int) and not _fits(item):
        raise ValueError(_TOO_LONG)
    if isinstance(item, str) and not item.isascii():
        try:
            item.encode("utf-8")
        except UnicodeEncodeError as error:
            half = ord(item[error.start])
            raise ValueError(f"a string holds half a surrogate pair (U+{half:04X})") from None
