"""GGUF files for llama.cpp.

Source: the GGUF specification (ggml's ``docs/gguf.md``) and llama.cpp's architecture "gpt2". A
matrix is stored as ``nn.Linear`` keeps it, so nothing is transposed; all biases have to be there.
llama.cpp computes GELU by tanh: a model trained with the erf form differs by about 0.01 in logits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import gguf_vocab
from nanogpt_cli.interop.gguf_vocab import Vocabulary
from nanogpt_cli.interop.huggingface import missing_biases
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.model.gpt import LAYER_NORM_EPS
from nanogpt_cli.training.tensor_files import ahead, little_endian

# Name on the command line -> names in the library: tensor type and file type.
TYPES: Final = {
    "f32": ("F32", "ALL_F32"), "f16": ("F16", "MOSTLY_F16"), "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"), "q5_1": ("Q5_1", "MOSTLY_Q5_1"),
    "q5_0": ("Q5_0", "MOSTLY_Q5_0"), "q4_1": ("Q4_1", "MOSTLY_Q4_1"),
    "q4_0": ("Q4_0", "MOSTLY_Q4_0"),
}  # fmt: skip
# Five and four bits change the model's output; the user should have asked for them explicitly.
LOSSY: Final = ("q5_1", "q5_0", "q4_1", "q4_0")
_BLOCK_NAMES: Final = {
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
# Values quantised at once, so that working memory stays small.
_ROWS_AT_ONCE: Final = 1 << 22
# Below the mean of all logits: e^-50 is never sampled.
_EOT_LOGIT: Final = -50.0


@dataclass(frozen=True)
class _Entry:
    """A tensor of the file: how to compute it and how to store it."""

    name: str
    shape: tuple[int, ...]
    get: Callable[[], Tensor]
    keep_f32: bool


def check(source: Exportable) -> None:
    """Raise ``UserError`` if llama.cpp's GPT-2 cannot represent the model or its tokenizer."""
    if source.config.activation not in ("gelu", "gelu_tanh"):
        raise UserError(
            f"llama.cpp's GPT-2 has no activation {source.config.activation!r}",
            "only gelu and gelu_tanh can be exported to GGUF",
        )
    if source.config.block_size < 2:
        raise UserError(
            "llama.cpp needs room for a token after the prompt; this model's context is 1 token",
            "give it at least 2 with model.block_size, and train it again",
        )
    _vocabulary(source)


def _vocabulary(source: Exportable) -> Vocabulary:
    return gguf_vocab.vocabulary(source.require_tokenizer("GGUF"), source.config.vocab_size)


def write(
    source: Exportable, folder: Path, report: Callable[[str], None], quantization: str = "f16"
) -> Path:
    """Write ``NAME-QUANTIZATION.gguf`` into ``folder``; returns its path.

    Raises:
        UserError: see ``check`` and ``check_type``.
    """
    check_type(quantization)
    check(source)
    path = folder / f"{source.name}-{quantization}.gguf"
    report(f"writing {path.name}")
    _write_file(path, source, _vocabulary(source), quantization)
    return path


def check_type(quantization: str) -> None:
    """Raise ``UserError`` unless ``quantization`` is one of ``TYPES``."""
    if quantization not in TYPES:
        raise UserError(
            f"unknown quantisation {quantization!r}",
            f"one of: {', '.join(TYPES)}; for others (Q4_K_M, ...) export f32 and run: "
            "llama-quantize MODEL-f32.gguf MODEL-Q4_K_M.gguf Q4_K_M",
        )


def _write_file(path: Path, source: Exportable, vocabulary: Vocabulary, quantization: str) -> None:
    from gguf import GGUFWriter

    # The library logs every tensor at level INFO.
    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)
    entries = list(_entries(source, vocabulary))
    writer = GGUFWriter(path, "gpt2")
    _add_metadata(writer, source, vocabulary, quantization)
    for entry in entries:
        kind, nbytes = _storage(entry, quantization)
        plain = np.dtype(np.float32)
        writer.add_tensor_info(entry.name, entry.shape, plain, nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for data in ahead(partial(_encoded, entry, quantization) for entry in entries):
        writer.write_tensor_data(data)
    writer.close()


def _storage(entry: _Entry, quantization: str) -> tuple[Any, int]:
    """The library's tensor type and the size in bytes of an entry."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[TYPES[quantization][0]]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if entry.keep_f32 or len(entry.shape) == 1:
        kind, block, block_bytes = GGMLQuantizationType.F32, 1, 4
    elif entry.shape[-1] % block:  # a row is not a whole number of blocks
        kind, block, block_bytes = GGMLQuantizationType.F16, 1, 2
    return kind, math.prod(entry.shape) // block * block_bytes


def _encoded(entry: _Entry, quantization: str) -> np.ndarray[Any, Any]:
    """A tensor in its stored form, quantised a few rows at a time."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    kind, _ = _storage(entry, quantization)
    tensor = entry.get()
    if kind == GGMLQuantizationType.F32:
        return little_endian(tensor)
    if kind == GGMLQuantizationType.F16:
        return np.ascontiguousarray(tensor.to(torch.float16).numpy(), dtype="<f2")
    rows = max(1, _ROWS_AT_ONCE // tensor.shape[-1])
    parts = [quantize(part.numpy(), kind) for part in tensor.split(rows)]  # type: ignore[no-untyped-call]
    return np.concatenate(parts)


def _add_metadata(
    writer: Any, source: Exportable, vocabulary: Vocabulary, quantization: str
) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    config = source.config
    writer.add_name(source.name)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.hidden_size)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(LAYER_NORM_EPS)
    writer.add_file_type(LlamaFileType[TYPES[quantization][1]])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.eot)
    writer.add_eos_token_id(vocabulary.eot)
    writer.add_add_bos_token(False)


def _entries(source: Exportable, vocabulary: Vocabulary) -> Iterator[_Entry]:
    weights = source.weights
    replaced = _with_end_of_text(source) if vocabulary.added_eot else {}
    for name, shape in weights.shapes.items():
        if name not in replaced:
            keep = name == "transformer.wpe.weight"
            yield _Entry(gguf_name(name), shape, partial(weights.get, name), keep)
    if not weights.config.bias:
        for name, size in missing_biases(weights.config):
            name = f"transformer.{name}"
            if name not in replaced:
                yield _Entry(gguf_name(name), (size,), partial(torch.zeros, size), True)
    for name, tensor in replaced.items():
        # Rounding the head would change the end-of-text logit at every position.
        keep = name == "lm_head.weight"
        yield _Entry(gguf_name(name), tuple(tensor.shape), tensor.detach, keep)


def gguf_name(name: str) -> str:
    """The name in the file of a tensor of ``model/gpt.py``."""
    stem, kind = name.rsplit(".", 1)
    top = {
        "transformer.wte": "token_embd", "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm", "lm_head": "output",
    }  # fmt: skip
    if stem in top:
        return f"{top[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_BLOCK_NAMES[part]}.{kind}"


def _with_end_of_text(source: Exportable) -> dict[str, Tensor]:
    """The tensors of the same model with one more token, which it never writes.

    llama.cpp requires an end-of-text token. A row of zeros would get the logit 0, which may be
    likely. But the output of the final LayerNorm is constant in one direction: with u = 1/weight,
    u·(weight · normalised) is the sum of the normalised values, which is 0; if a weight is 0, that
    axis is constant. Shifting the bias along u so that u·bias = 1 lets every row add a constant to
    its logit: the old rows subtract what the shift added, the new row is the mean row minus 50.
    """
    weights = source.weights
    embedding = weights.get("transformer.wte.weight")
    head = embedding if source.config.tied else weights.get("lm_head.weight")
    scale = weights.get("transformer.ln_f.weight").double()
    name = "transformer.ln_f.bias"
    bias = weights.get(name).double() if source.config.bias else torch.zeros_like(scale)
    u = free_direction(scale)
    shift = (1 - u @ bias) / (u @ u)
    rows = head.double()
    rows = rows - shift * (rows @ u)[:, None] * u
    eot = rows.mean(0, keepdim=True) + _EOT_LOGIT * u
    none = torch.zeros(1, embedding.shape[1])
    return {
        "transformer.wte.weight": torch.cat([embedding, none]),
        name: (bias + shift * u).float(),
        "lm_head.weight": torch.cat([rows, eot]).float(),
    }


def free_direction(scale: Tensor) -> Tensor:
    """A vector u of root mean square 1 with u·(scale · x) = 0 for every x of mean 0.

    Args:
        scale: a LayerNorm's weight (C,), float64.
    """
    smallest = scale.abs().argmin()
    if scale[smallest].abs() <= 1e-6 * scale.abs().max():
        u = torch.zeros_like(scale)
        u[smallest] = 1.0
    else:
        u = 1 / scale
    return u / u.square().mean().sqrt()
