"""Numbers and paths as a user, a file name or the environment gives them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nanogpt_cli.errors import UserError

# str.isdigit() also accepts "²", which int() refuses, and int() refuses thousands of digits.
_WHOLE = re.compile(r"[0-9]{1,18}")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{0,9})?) ?(s|m|h|)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_LONGEST = 30 * 86400.0  # seconds


def whole(text: str) -> int | None:
    """The number that up to 18 ASCII digits give; None for any other text."""
    return int(text) if _WHOLE.fullmatch(text) else None


def seconds(text: str, what: str) -> float:
    """A duration as people write it: ``90``, ``90s``, ``2m``, ``1.5h``.

    Args:
        text: what was given.
        what: what to call it in the message, such as ``--budget``.

    Raises:
        UserError: it is none, or is not positive.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    value = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < value <= _LONGEST:
        raise UserError(
            f"{what} {text!r:.80} is not a duration", "write seconds, minutes or hours: 90s, 2m, 1h"
        )
    return value


def whole_from_environment(name: str, default: int) -> int:
    """The whole number in an environment variable, or ``default`` where it is not set.

    Raises:
        UserError: it holds something else.
    """
    text = os.environ.get(name)
    if text is None:
        return default
    value = whole(text)
    if value is None:
        raise UserError(
            f"{name}={text:.80} in the environment is not a whole number",
            f"type: unset {name}"
            if name.startswith("NANOGPT_")
            else f"torchrun sets it; without torchrun, type: unset {name}",
        )
    return value


def expanded(text: str) -> Path:
    """The path with a leading ``~`` or ``~NAME`` replaced by that user's home folder.

    A path that begins with ``./~`` becomes absolute, since a ``Path`` forgets the ``./``.

    Raises:
        UserError: there is no such user.
    """
    if not text.startswith("~"):
        return Path(text).absolute() if str(Path(text)).startswith("~") else Path(text)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        name = text.partition("/")[0]
        raise UserError(
            f"{text:.300}: the home folder of {name:.80} is not known",
            f"for a file of this name in the current folder, write ./{text:.80}",
        ) from None
