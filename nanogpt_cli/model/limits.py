"""Checks of a model configuration that was read from a file, which anyone may have written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from nanogpt_cli import sizes

# The largest sizes that a recipe accepts; more is a damaged file or an attempt to fill the memory.
LARGEST: Final = {
    "n_layer": sizes.MOST_LAYERS, "n_head": sizes.MOST_CHANNELS, "n_embd": sizes.MOST_CHANNELS,
    "block_size": sizes.MOST_CHANNELS, "vocab_size": sizes.MOST_ROWS,
}  # fmt: skip


def check_config(values: Mapping[str, Any]) -> None:
    """Check values under the names of ``GPTConfig``'s fields.

    Raises:
        ValueError: a size is missing, or a value is of another type or out of range; the message
            names the key.
    """
    for name, most in LARGEST.items():
        if not is_whole(value := values.get(name)) or not 1 <= value <= most:
            raise ValueError(f"{name} must be a whole number from 1 to {most:,}, not {value!r:.80}")
    most = sizes.MOST_CHANNELS
    for name in ("n_kv_head", "hidden", "head_dim"):
        if not is_whole(value := values.get(name, 0)) or not 0 <= value <= most:
            raise ValueError(f"{name} must be a whole number from 0 to {most:,}, not {value!r:.80}")
    for name in ("bias", "tied", "qk_norm"):
        value = values.get(name, True)
        if not isinstance(value, bool) and (name, value) != ("bias", "qkv"):
            known = 'true, false or "qkv"' if name == "bias" else "true or false"
            raise ValueError(f"{name} must be {known}, not {value!r:.80}")
    for name in ("norm_eps", "rope_theta"):
        if not is_number(value := values.get(name, 1.0)) or value <= 0:
            raise ValueError(f"{name} must be a positive number, not {value!r:.80}")
    if values.get("norm_eps", 1.0) < sizes.SMALLEST_EPS:
        raise ValueError(f"norm_eps {values['norm_eps']:g} is below {sizes.SMALLEST_EPS:g}")
    if values.get("rope_theta", 1.0) > sizes.LARGEST_THETA:
        raise ValueError(f"rope_theta {values['rope_theta']:g} is above {sizes.LARGEST_THETA:g}")
    if not is_number(value := values.get("dropout", 0.0)) or not 0 <= value < 1:
        raise ValueError(f"dropout must be a number from 0 to below 1, not {value!r:.80}")
    for name in ("activation", "norm", "position"):
        if not isinstance(value := values.get(name, ""), str):
            raise ValueError(f"{name} must be a name, not {value!r:.80}")
    if not isinstance(factors := values.get("multipliers", {}), dict):
        raise ValueError(f"multipliers must be a table, not {factors!r:.80}")
    for name, value in factors.items():
        if not is_number(value) and (name, value) != ("attention", None):
            raise ValueError(f"multipliers.{name} must be a finite number, not {value!r:.80}")


def is_whole(value: object) -> TypeGuard[int]:
    """Whether ``value`` is an integer; ``True`` and ``False`` are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a finite number."""
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
