"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in Llama's layout.

Channels i and i + D/2 of a head form a plane, which is turned by position · theta^(-2i/D). A score
query·key then depends on positions through their difference alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines of the angles at some positions, float32 (..., T, D/2) each."""

    cos: Tensor
    sin: Tensor


def rotation(positions: Tensor, head_size: int, theta: float) -> Rotation:
    """The rotation at ``positions``, int64 (..., T), of heads of ``head_size`` channels."""
    exponents = torch.arange(0, head_size, 2, device=positions.device).float() / head_size
    # Rounded as in transformers: at position 1000, a last bit of a frequency is 1e-4 of an angle.
    angles = positions[..., None].float() * (1.0 / theta**exponents)
    return Rotation(angles.cos(), angles.sin())


def turned(x: Tensor, by: Rotation | None) -> Tensor:
    """Turn (..., T, D) queries or keys; ``None`` leaves them as they are.

    It is computed in float32 at least and rounded to the dtype of ``x`` once.
    """
    if by is None:
        return x
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * by.cos - b * by.sin, b * by.cos + a * by.sin), dim=-1).to(x.dtype)
