"""What a GGUF file says of each architecture: its tensors and its keys.

Source: llama.cpp's ``src/models`` and ``convert_hf_to_gguf.py``. A matrix is stored as
``nn.Linear`` keeps it, so nothing is transposed. In a GPT-2 all biases have to be there. Llama's
rows of queries and keys are in another order: llama.cpp turns channels 2i and 2i + 1 of its heads,
this package i and i + D/2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import llama
from nanogpt_cli.interop.gguf_end import Widened, biased_tensors, layer_norm_tensors
from nanogpt_cli.interop.huggingface import missing_biases
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.model import homes
from nanogpt_cli.model.config import LAYER_NORM_EPS
from nanogpt_cli.model.parameters import TOKEN_TABLES

# Module in model/gpt.py -> its name in the file; those of a block stand behind its number.
_NAMES: Final = {
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm", **llama.GGUF_NAMES,
}  # fmt: skip
_BLOCK_NAMES: Final = {
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", **llama.GGUF_BLOCK_NAMES,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: how to compute it, and whether it stays as exact as it is."""

    name: str
    shape: tuple[int, ...]
    get: Callable[[], Tensor]
    keep_f32: bool = False


def architecture(source: Exportable) -> str:
    """llama.cpp's name of a model's architecture."""
    gpt2 = source.config.naming == "gpt2"  # with whichever activation
    return "gpt2" if gpt2 else homes.home(source.config) or ""


def check(source: Exportable) -> None:
    """Raise ``UserError`` if llama.cpp's architecture has no place for a size of the model."""
    config = source.config
    # Its Qwen2 reads queries (C, C) whatever the file says of a head's size.
    if architecture(source) == "qwen2" and config.q_size != config.n_embd:
        raise UserError(
            f"llama.cpp's Qwen2 has heads of n_embd / n_head = "
            f"{config.n_embd / config.n_head:g} channels; this model's head_dim is "
            f"{config.head_size}",
            "export it to hf, onnx or pt2, which hold it; llama.cpp's Llama and Qwen3 have heads "
            "of any size",
        )


def name_in_file(name: str) -> str:
    """The name in the file of a tensor of ``model/gpt.py``."""
    stem, kind = name.rsplit(".", 1)
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_BLOCK_NAMES[part]}.{kind}"


def add_sizes(writer: Any, source: Exportable, *, added_eot: bool) -> None:
    """Add an architecture's keys to a ``gguf.GGUFWriter``; arguments as of ``entries``."""
    config, wide = source.config, _widened(source, added_eot=added_eot)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(wide.channels if wide else config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.hidden_size)
    writer.add_head_count(config.n_head)
    if config.naming == "gpt2":
        writer.add_layer_norm_eps(LAYER_NORM_EPS)
        return
    writer.add_layer_norm_rms_eps(wide.norm_eps if wide else config.norm_eps)
    writer.add_vocab_size(config.vocab_size + added_eot)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)


def entries(source: Exportable, *, added_eot: bool) -> Iterator[Entry]:
    """The tensors of the file.

    Args:
        source: the model.
        added_eot: whether the file's vocabulary has an end-of-text token that the model lacks.
    """
    interleaved = source.config.naming == "llama" and llama.of(source.config).interleaved
    for entry in _entries(source, added_eot=added_eot):
        get = entry.get
        if interleaved and entry.name.endswith(("q_proj.weight", "k_proj.weight")):
            get = partial(_interleaved, entry.get, source.config.head_size)
        yield Entry(name_in_file(entry.name), entry.shape, get, entry.keep_f32)


def _entries(source: Exportable, *, added_eot: bool) -> Iterator[Entry]:
    """The tensors under their names in ``model/gpt.py``."""
    if (wide := _widened(source, added_eot=added_eot)) is not None:
        for name in wide.names():
            # In the tables the added channel is small, and must not be rounded away.
            keep = name in TOKEN_TABLES
            yield Entry(name, wide.shape(name), partial(wide.get, name), keep)
        return
    weights = source.weights
    gpt2 = weights.config.naming == "gpt2"
    replaced = (layer_norm_tensors if gpt2 else biased_tensors)(source) if added_eot else {}
    for name, shape in weights.shapes.items():
        if name not in replaced:
            keep = name == "transformer.wpe.weight"
            yield Entry(name, shape, partial(weights.get, name), keep)
    if gpt2 and not weights.config.bias:
        for name, size in missing_biases(weights.config):
            name = f"transformer.{name}"
            if name not in replaced:
                yield Entry(name, (size,), partial(torch.zeros, size), keep_f32=True)
    for name, tensor in replaced.items():
        # Rounding the head would change the end-of-text logit at every position.
        yield Entry(name, tuple(tensor.shape), tensor.detach, name == "lm_head.weight")


def _widened(source: Exportable, *, added_eot: bool) -> Widened | None:
    """The model with room for an end-of-text token, where no bias can hold its logit down."""
    biased = source.config.naming == "gpt2" or source.config.bias == "qkv"
    return Widened(source.weights) if added_eot and not biased else None


def _interleaved(get: Callable[[], Tensor], head_size: int) -> Tensor:
    """A projection (heads · D, C) with rows i and i + D/2 of each head next to each other."""
    rows = get()
    halves = rows.view(-1, 2, head_size // 2, rows.shape[1])
    return halves.transpose(1, 2).reshape(rows.shape)
