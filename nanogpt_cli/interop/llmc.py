"""Reading llm.c's model files (``gpt2_124M.bin``).

Source: llm.c's ``train_gpt2.py`` (``write_model``) and ``train_gpt2.cu``. A header of 256 int32,
then the tensors of all layers grouped by kind, float32 (version 3) or bfloat16 (version 5), all
little-endian. The activation is GELU by tanh; the vocabulary is GPT-2's, padded to 50304 rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import LoadedModel
from nanogpt_cli.interop.foreign import TensorSource, build
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.model.parameters import shapes
from nanogpt_cli.text.tokenizers import factory
from nanogpt_cli.text.tokenizers.gpt2_bpe import VOCAB_SIZE

MAGIC: Final = 20240326
_HEADER: Final = 256
_TYPES: Final = {3: torch.float32, 5: torch.bfloat16}
_LARGEST: Final = 1 << 24
# The order inside each group of layers.
_KINDS: Final = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
    "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
    "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip


def is_file(path: Path) -> bool:
    """Whether ``path`` begins with the magic number of llm.c's models."""
    with foreign_files.opened(path) as file:
        return file.read(4) == MAGIC.to_bytes(4, "little")


def read(path: Path) -> LoadedModel:
    """The model in a ``.bin`` file of llm.c.

    Raises:
        UserError: the file is not such a model, is damaged, or has a wrong length.
    """
    try:
        size = foreign_files.check(path).st_size
        header = np.fromfile(path, dtype="<i4", count=_HEADER)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if len(header) < _HEADER or header[0] != MAGIC:
        raise UserError(f"{path} is not a model of llm.c: it does not begin with {MAGIC}")
    config, padded, dtype = _config(path, header)
    tensors = _tensors(path, config, padded, dtype, size)
    model = build(config, tensors, {name: name for name in tensors.shapes})
    notes: tuple[str, ...] = ()
    tokenizer = None
    if config.vocab_size == VOCAB_SIZE:
        tokenizer = factory.get("gpt2")
    else:
        notes = (f"a vocabulary of {config.vocab_size} is not GPT-2's: name it with --tokenizer",)
    return LoadedModel(model, tokenizer, str(path), notes=notes)


def _config(path: Path, header: np.ndarray[tuple[int], np.dtype[np.int32]]
            ) -> tuple[GPTConfig, int, torch.dtype]:  # fmt: skip
    version, T, V, L, H, C, padded = (int(value) for value in header[1:8])
    if version not in _TYPES:
        raise UserError(f"{path} has version {version}; 3 (float32) and 5 (bfloat16) are read")
    if not all(1 <= value <= _LARGEST for value in (T, V, L, H, C, padded)) or C % H or padded < V:
        raise UserError(
            f"{path} has an invalid header: {T} positions, {V} of {padded} tokens, {L} layers, "
            f"{H} heads, {C} channels"
        )
    config = GPTConfig(
        n_layer=L, n_head=H, n_embd=C, block_size=T, vocab_size=V, dropout=0.0, bias=True,
        activation="gelu_tanh",
    )  # fmt: skip
    return config, padded, _TYPES[version]


def _sizes(config: GPTConfig, padded: int) -> Iterator[tuple[str, int, int]]:
    """Each group of tensors in the file: its name, the size of one tensor, their number."""
    C, L = config.n_embd, config.n_layer
    per_layer = {"attn.c_attn.weight": 3 * C * C, "attn.c_attn.bias": 3 * C,
                 "attn.c_proj.weight": C * C, "mlp.c_fc.weight": 4 * C * C,
                 "mlp.c_fc.bias": 4 * C, "mlp.c_proj.weight": 4 * C * C}  # fmt: skip
    yield "transformer.wte.weight", padded * C, 1
    yield "transformer.wpe.weight", config.block_size * C, 1
    for kind in _KINDS:
        yield kind, per_layer.get(kind, C), L
    yield "transformer.ln_f.weight", C, 1
    yield "transformer.ln_f.bias", C, 1


def _tensors(
    path: Path, config: GPTConfig, padded: int, dtype: torch.dtype, size: int
) -> TensorSource:
    """Every tensor at its offset; the file's length is checked before a list of layers is made."""
    groups = list(_sizes(config, padded))
    numbers = sum(count * tensors for _, count, tensors in groups)
    wanted = 4 * _HEADER + numbers * dtype.itemsize
    if wanted != size:
        raise UserError(f"{path} has {size:,} bytes, its header asks for {wanted:,}")
    offsets, at = {}, 4 * _HEADER
    for name, count, tensors in groups:
        for layer in range(tensors):
            full = f"transformer.h.{layer}.{name}" if name in _KINDS else name
            offsets[full] = at
            at += count * dtype.itemsize
    found = shapes(config)

    def get(name: str) -> Tensor:
        count = math.prod(found[name])
        kind = "<f4" if dtype == torch.float32 else "<i2"
        values = np.fromfile(path, dtype=kind, count=count, offset=offsets[name])
        return torch.from_numpy(values).view(dtype).view(found[name])

    return TensorSource(str(path), found, get)
