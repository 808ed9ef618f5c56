"""Initialisation schemes as data: laws of initial values, one per class of tensor."""

from nanogpt_cli.schemes.scheme import (
    CLASSES,
    GROUPS,
    MULTIPLIERS,
    Scheme,
    catalogue,
    get,
    names,
    parse_custom,
)

__all__ = [
    "CLASSES", "GROUPS", "MULTIPLIERS", "Scheme", "catalogue", "get", "names", "parse_custom",
]  # fmt: skip
