"""Where a known decoder's parts lie in a module, and what their moments make of it.

A plan is a claim. Before anything is concluded from it, ``reference.agrees`` compares a forward
pass made from it with the module's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanogpt_cli.init.blueprint import Blueprint, Variances
from nanogpt_cli.modules.anatomy import Part

Parts = Mapping[str, Part]
_AT_ONCE = 1 << 22  # values
NORM_NAMES = ("norm_1", "norm_2", "after_1", "after_2", "q_norm", "k_norm")


@dataclass(frozen=True)
class Plan:
    """A module as a decoder of known parts.

    Attributes:
        blueprint: its structure; the moments are those that ``moments`` filled in, else 0.
        blocks: by block, the parts by name: those of ``families.Family`` with ``qkv`` and
            ``gate_fc`` taken apart, and biases as ``q.bias``.
        outside: ``wte``, ``wpe``, ``final``, ``lm_head`` and biases.
        paths: paths of the blocks.
        offset: 1 if the norms' gain is 1 + weight, else 0.
        interleaved: whether rotary positions turn neighbouring channels.
        first_position: row of the position table for the first token.
    """

    blueprint: Blueprint
    blocks: tuple[Parts, ...]
    outside: Parts
    paths: tuple[str, ...]
    offset: float = 0.0
    interleaved: bool = False
    first_position: int = 0

    def moments(self, squares: Mapping[str, float]) -> Blueprint | str:
        """The blueprint with E[w²] of every part.

        Args:
            squares: mean square by ``Part.key``, as ``mean_square`` computes it; of a norm's
                weight, that of the gain.
        """

        def of(parts: Parts, name: str, default: float = 0.0) -> float:
            return squares[parts[name].key] if name in parts else default

        every = (self.outside, *self.blocks)
        for part in (p[f"{n}.bias"] for p in every for n in (*NORM_NAMES, "final")
                     if f"{n}.bias" in p):  # fmt: skip
            if squares[part.key]:
                return f"{part.parameter} is not zero; theory knows norms without bias"
        layers = tuple(
            replace(layer, moments=_variances(parts, of))
            for layer, parts in zip(self.blueprint.layers, self.blocks, strict=True)
        )
        head = "wte" if self.blueprint.tied else "lm_head"
        rows = self.blueprint.vocab / (self.blueprint.vocab - (self.blueprint.padding >= 0))
        return replace(
            self.blueprint,
            layers=layers,
            wte=of(self.outside, "wte") * rows,
            wpe=of(self.outside, "wpe"),
            head=of(self.outside, head),
            final_gain=of(self.outside, "final", 1.0),
        )

    def mean_square(self, name: str, part: Part, parameter: Tensor) -> float:
        """E[w²] of a part, or E[g²] of the gain of a norm, from its parameter's values."""
        values = part.of(parameter)
        if name == "final" or name in NORM_NAMES:
            values = values + self.offset
        total = 0.0
        rows_at_once = max(1, _AT_ONCE * len(values) // max(1, values.numel()))
        for rows in torch.split(values, rows_at_once):  # each is copied to float64
            total += float(torch.linalg.vector_norm(rows, dtype=torch.float64)) ** 2
        return total / max(1, values.numel())

    def names(self) -> list[tuple[str, Part]]:
        """All parts with their names."""
        return [item for parts in (self.outside, *self.blocks) for item in parts.items()]


def _variances(parts: Parts, of: Callable[..., float]) -> Variances:
    matrices = ("q", "k", "v", "attn_proj", "fc", "mlp_proj")
    return Variances(
        **{name: of(parts, name) for name in (*matrices, "gate", "router")},
        gain_1=of(parts, "norm_1", 1.0),
        gain_2=of(parts, "norm_2", 1.0),
        after_1=of(parts, "after_1", 1.0),
        after_2=of(parts, "after_2", 1.0),
        gain_q=of(parts, "q_norm", 1.0),
        gain_k=of(parts, "k_norm", 1.0),
        bias_q=of(parts, "q.bias"),
        bias_k=of(parts, "k.bias"),
        bias_v=of(parts, "v.bias"),
        bias_attn=of(parts, "attn_proj.bias"),
        bias_fc=of(parts, "fc.bias"),
        bias_mlp=of(parts, "mlp_proj.bias"),
        bias_gate=of(parts, "gate.bias"),
    )
