"""Writing ``torch.export`` programs, which torch runs without this package.

A program is traced on a model without values. The archive that torch makes of it is then rewritten
with the weights as its members, one at a time.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import source as sources
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.interop.torchfile import Archive
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.model.parameters import token_embedding

_PREFIX: Final = "model."
_WEIGHTS: Final = "data/weights/"
_WEIGHTS_CONFIG: Final = _WEIGHTS + "model_weights_config.json"
# Members that torch's writer adds to every archive itself.
_BY_THE_WRITER: Final = ("byteorder", ".data/version", ".data/serialization_id")
_VERSION: Final = 6  # of the container, as torch.export.save sets it


class _Logits(nn.Module):
    """The model as a function of ids (B, T) to logits (B, T, V)."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids)[0]
        return logits


def check(source: Exportable) -> None:
    """Raise ``UserError`` if torch.export cannot leave the number of positions open."""
    # It takes a dimension that can only be 1 or 2 for the constant 2.
    if source.config.block_size == 2:
        raise UserError(
            "torch.export cannot leave a context of 1 or 2 tokens open",
            "give the model another model.block_size, and train it again",
        )


def write(source: Exportable, folder: Path, report: Callable[[str], None]) -> Path:
    """Write ``NAME.pt2`` into ``folder``, for any batch size and 1 to block_size positions.

    Raises:
        UserError: see ``check``.
    """
    check(source)
    path = folder / f"{source.name}.pt2"
    report(f"tracing the model for {path.name}")
    members = _without_weights(_program(source.config))
    weights = json.loads(members.pop(_WEIGHTS_CONFIG))
    report(f"writing {source.weights.nbytes / 1e6:,.1f} MB of weights")
    with Archive(path, version=_VERSION) as archive:
        for native, name in _place(weights["config"], source).items():
            archive.add_tensor(_WEIGHTS + name, source.weights.get(native))
        archive.add(_WEIGHTS_CONFIG, json.dumps(weights).encode())
        for name, data in members.items():
            archive.add(name, data)
    return path


def _program(config: GPTConfig) -> torch.export.ExportedProgram:
    from torch.export import Dim

    time = Dim("time", max=config.block_size) if config.block_size > 2 else None
    shapes = {"input_ids": {0: Dim("batch"), **({1: time} if time else {})}}
    with sources.without_values():
        model = GPT(config).eval()
        example = torch.zeros(2, min(2, config.block_size), dtype=torch.int64)
    with torch.no_grad():
        return torch.export.export(_Logits(model), (example,), dynamic_shapes=shapes)


def _without_weights(program: torch.export.ExportedProgram) -> dict[str, bytes]:
    """The members of the program's archive, by their names below the archive's top folder."""
    file = io.BytesIO()
    torch.export.save(program, file)
    with zipfile.ZipFile(file) as archive:
        found = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    return {name: data for name, data in found.items() if name not in _BY_THE_WRITER
            and (name == _WEIGHTS_CONFIG or not name.startswith(_WEIGHTS))}  # fmt: skip


def _place(entries: dict[str, Any], source: Exportable) -> dict[str, str]:
    """Assign a member of the archive to each tensor in ``entries``; native name -> member."""
    placed: dict[str, str] = {}
    for name, entry in entries.items():
        native = name.removeprefix(_PREFIX)
        if native == "lm_head.weight" and source.config.tied:
            native = token_embedding(source.config)
        entry["path_name"] = placed.setdefault(native, f"weight_{len(placed)}")
    assert placed.keys() == source.weights.shapes.keys(), "the program has other weights"
    return placed
