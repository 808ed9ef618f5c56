"""Random byte flips over every accepted file: read, or refused in one line; never anything else."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import exportable, make_model, quiet, write_llmc

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import huggingface, importing, nanogpt

FLIPS = 80
SMALL = {"n_layer": 1, "n_embd": 8, "block_size": 8}


def _hf(folder: Path) -> None:
    huggingface.write(exportable(**SMALL), folder, quiet)


def _nanogpt(folder: Path) -> None:
    nanogpt.write(exportable(**SMALL), folder, quiet)
    (meta,) = folder.glob("data/*/meta.pkl")
    meta.rename(folder / "meta.pkl")
    (folder / "tokenizer.json").unlink()


def _pickled(folder: Path, **options: Any) -> None:
    _hf(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()


def _old(folder: Path) -> None:
    _pickled(folder, _use_new_zipfile_serialization=False)


def _llmc(folder: Path) -> None:
    write_llmc(folder / "model.bin", make_model(activation="gelu_tanh", **SMALL))


@pytest.mark.parametrize(
    ("make", "name", "read"),
    [
        (_hf, "model.safetensors", ""), (_hf, "config.json", ""), (_hf, "tokenizer.json", ""),
        (_pickled, "pytorch_model.bin", ""), (_old, "pytorch_model.bin", ""),
        (_nanogpt, "ckpt.pt", ""), (_nanogpt, "meta.pkl", ""), (_llmc, "model.bin", "model.bin"),
    ],
)  # fmt: skip
def test_flipped_bytes(tmp_path: Path, make: Callable[[Path], None], name: str, read: str) -> None:
    make(tmp_path)
    path = tmp_path / name
    good = path.read_bytes()
    rng = random.Random(name)
    refused: list[str] = []
    for number in range(FLIPS):
        data = bytearray(good)
        # Mostly where formats keep their structure: at the very front, the front, the end.
        size = len(good)
        ranges = [(0, size), (0, min(size, 32)), (0, min(size, 2000)), (max(0, size - 2000), size)]
        data[rng.randrange(*ranges[number % 4])] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        try:
            importing.read(tmp_path / read if read else tmp_path)
        except UserError as error:
            refused.append(error.message)
    assert refused
    assert not [message for message in refused if "\n" in message or len(message) > 600]
    path.write_bytes(good)
    importing.read(tmp_path / read if read else tmp_path)
