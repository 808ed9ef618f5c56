"""From the uses of parameters in a pass to a list of parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanogpt_cli.modules.anatomy import Part


@dataclass
class Use:
    """One role that one use of a parameter has, for some of its output features."""

    role: str
    layer: int
    rows: Tensor | None  # of Part.of; None for all
    transposed: bool = False


def template(name: str) -> str:
    """A parameter's name without the indices of lists."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", name)


def same(one: Use, other: Use) -> bool:
    """Whether two uses are of one part."""
    if one.role != other.role:
        return False
    if one.rows is None or other.rows is None:
        return one.rows is other.rows
    return torch.equal(one.rows, other.rows)


def make_parts(module: nn.Module, uses: dict[str, list[Use]]) -> Iterator[Part]:
    """A part for each use; what the pass did not use takes the role of its like in other blocks."""
    templates = {template(name): found for name, found in uses.items()}
    for name, _ in module.named_parameters():
        found = uses.get(name)
        if not found:
            like = templates.get(template(name), [Use("other", -1, None)])
            layer = _layer_like(name, uses)
            found = [Use(u.role, layer, u.rows, u.transposed) for u in like]
        several = len(found) > 1
        for use in found:
            tag = use.role if several else ""
            if several and len({u.layer for u in found}) > 1:
                tag = f"{use.layer}.{use.role}"
            yield Part(name, use.role, use.layer, use.rows, use.transposed, tag)


def _layer_like(name: str, uses: dict[str, list[Use]]) -> int:
    """The block of the parameter that shares the longest path with this one."""
    words = name.split(".")
    for length in range(len(words) - 1, 0, -1):
        prefix = ".".join(words[:length]) + "."
        layers = {u.layer for other, found in uses.items() if other.startswith(prefix)
                  for u in found}  # fmt: skip
        if len(layers) == 1:
            return layers.pop()
    return -1
