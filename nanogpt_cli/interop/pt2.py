"""``torch.export`` programs: the model without Python code, run by torch alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from nanogpt_cli.core.model import GPT
from nanogpt_cli.interop.source import Exportable


class _Logits(nn.Module):
    """The model as a function of ids (B, T) to logits (B, T, V)."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids)[0]
        return logits


def write(source: Exportable, folder: Path, report: Callable[[str], None]) -> Path:
    """Write ``NAME.pt2`` into ``folder``; any batch size, 1 to block_size positions."""
    from torch.export import Dim

    path = folder / f"{source.name}.pt2"
    report(f"tracing the model for {path.name}")
    block_size = source.config.block_size
    example = torch.zeros(2, min(2, block_size), dtype=torch.int64)
    time = Dim("time", max=block_size) if block_size > 2 else None
    with torch.no_grad():
        program = torch.export.export(
            _Logits(source.model()),
            (example,),
            dynamic_shapes={"input_ids": {0: Dim("batch"), **({1: time} if time else {})}},
        )
    torch.export.save(program, path)
    return path
