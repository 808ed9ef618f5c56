"""Reading JSON that a stranger wrote: bounded in size, one clear line when it is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nanogpt_cli.errors import UserError

LARGEST_CONFIG = 1 << 20
LARGEST_VOCABULARY = 1 << 28


def read_object(path: Path, *, limit: int = LARGEST_CONFIG) -> dict[str, Any]:
    """The JSON object in ``path``.

    Args:
        path: the file.
        limit: largest size in bytes that is read at all.

    Raises:
        UserError: it is missing, too large, not JSON, or not an object.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise UserError(f"{path} has {size:,} bytes; at most {limit:,} are read")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def whole(source: Path, values: dict[str, Any], key: str, default: int | None = None) -> int:
    """A positive integer below 2³¹ from a configuration.

    Raises:
        UserError: the key is missing or holds something else.
    """
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
        raise UserError(f"{source}: {key} must be a positive whole number, not {value!r:.80}")
    return value


def real(source: Path, values: dict[str, Any], key: str, default: float) -> float:
    """A probability from a configuration: a number in [0, 1).

    Raises:
        UserError: the key holds something else.
    """
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise UserError(f"{source}: {key} must be a number from 0 to below 1, not {value!r:.80}")
    return float(value)
