"""The settings that control how the next token is drawn, validated on construction.

Their defaults are defined here, for ``--help``, the interactive loop and the trainer's samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanogpt_cli.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Settings of a draw, applied in the order of the attributes, as in ``transformers``.

    Attributes:
        repetition_penalty: logits of tokens seen before are divided by it if positive, else
            multiplied (Keskar et al. 2019, CTRL); 1 is off.
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep this many tokens; 0 is off.
        top_p: keep the most probable tokens until their mass reaches this (Holtzman et al. 2019);
            1 is off.
        min_p: drop tokens less probable than this share of the most probable one (Nguyen et al.
            2024); 0 is off.

    Raises:
        UserError: a value is out of range; the message names it.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.8
    top_k: int = 200
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        _require(self.repetition_penalty > 0, "repetition penalty", self.repetition_penalty, "> 0")
        # Logits divided by a smaller temperature could overflow.
        fits = self.temperature == 0 or self.temperature >= 1e-6
        _require(fits, "temperature", self.temperature, "≥ 1e-6, or 0, which is greedy")
        _require(self.top_k >= 0, "top-k", self.top_k, "≥ 0 (0 is off)")
        _require(0 < self.top_p <= 1, "top-p", self.top_p, "above 0 and at most 1 (1 is off)")
        _require(0 <= self.min_p <= 1, "min-p", self.min_p, "between 0 and 1 (0 is off)")


def _require(fits: bool, name: str, value: float, wanted: str) -> None:
    if not fits or not math.isfinite(value):
        raise UserError(f"{name} is {value:g}", f"it must be a finite number {wanted}")
