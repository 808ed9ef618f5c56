"""Angle and gradient exponents: how fast positions become alike, and gradients grow, with depth.

After Cowsik, Nebabu, Qi and Ganguli 2403.02579, who follow tokens through a transformer as a
dynamical system. Linearised where all tokens agree, 1 - cosine between two of them is multiplied
by e^λa in a block: below 0 they collapse onto one direction, above 0 they are driven apart. The
squared gradient is multiplied by e^λg in a block, from the last to the first. Training was best
where both vanish.

Their model has a fixed point, and so one pair of exponents. In a pre-LN GPT the stream grows and a
block matters less the later it comes, so that these are means over the blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_cli.init.blueprint import Blueprint
from nanogpt_cli.init.forward_theory import Forward
from nanogpt_cli.init.signals import Signals
from nanogpt_cli.init.theory import random_tokens
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.schemes import Scheme

# 1 - cosine between two positions at the start: small, for the map to be linear, and large beside
# the rounding of float64. ReLU's kernel departs from its slope by the root of this.
_APART = 1e-6
_POSITIONS = 64  # the first few see little past, in which attention averages differences away


@dataclass(frozen=True)
class Exponents:
    """Means over blocks of the logarithms of two factors.

    Attributes:
        angle: λa, of 1 - cosine between positions that nearly agree.
        gradient: λg, of the squared gradient of the stream, towards the first block; NaN without
            gradients.
    """

    angle: float
    gradient: float


def exponents(
    config: GPTConfig, scheme: Scheme, signals: Signals, *, layer_norm: bool = True
) -> Exponents:
    """Both exponents of one model by theory.

    Args:
        config: with the scheme's multipliers.
        scheme: from ``schemes.get``.
        signals: expected for this model, with gradients.
        layer_norm: False leaves every LayerNorm out.
    """
    angle = angle_exponent(config, scheme, layer_norm=layer_norm)
    return Exponents(angle, 2 * _log(signals.gradient_ratio) / config.n_layer)


def angle_exponent(config: GPTConfig, scheme: Scheme, *, layer_norm: bool = True) -> float:
    """λa: the mean over blocks of log(1 - cosine behind / 1 - cosine before)."""
    length = min(_POSITIONS, config.block_size)
    if length < 2:
        return math.nan
    idx, targets = random_tokens(config, 1, length, seed=0)
    plan = Blueprint.of(config, scheme, layer_norm=layer_norm)
    run = Forward(plan, idx, targets)
    power = plan.wte + plan.wpe
    C = torch.full((length, length), 1 - _APART, dtype=torch.float64)
    C.fill_diagonal_(1.0).mul_(power * config.multipliers.embedding**2)
    if not power:
        return math.nan  # no direction to be alike in
    before = _apart(C)
    for layer in range(config.n_layer):
        C = run.through(C, layer)
    return _log(_apart(C) / before) / config.n_layer


def _log(ratio: float) -> float:
    """The logarithm; NaN for what rounding has made zero or negative."""
    return math.log(ratio) if ratio > 0 else math.nan


def _apart(C: Tensor) -> float:
    """Mean 1 - cosine over pairs of different positions."""
    s = C.diagonal().sqrt()
    n = len(C)
    return float((1 - C / (s[:, None] * s)).sum()) / (n * (n - 1))
