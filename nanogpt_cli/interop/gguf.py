"""GGUF files for llama.cpp.

Source: the GGUF specification (ggml's ``docs/gguf.md``). llama.cpp computes GELU by tanh: a model
trained with the erf form differs by about 0.01 in logits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import gguf_models, gguf_vocab
from nanogpt_cli.interop.gguf_models import Entry
from nanogpt_cli.interop.gguf_vocab import Vocabulary
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.training.checkpoints.tensor_files import ahead, little_endian

# Name on the command line -> names in the library: tensor type and file type.
TYPES: Final = {
    "f32": ("F32", "ALL_F32"), "f16": ("F16", "MOSTLY_F16"), "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"), "q5_1": ("Q5_1", "MOSTLY_Q5_1"),
    "q5_0": ("Q5_0", "MOSTLY_Q5_0"), "q4_1": ("Q4_1", "MOSTLY_Q4_1"),
    "q4_0": ("Q4_0", "MOSTLY_Q4_0"),
}  # fmt: skip
# Five and four bits change the model's output; the user should have asked for them explicitly.
LOSSY: Final = ("q5_1", "q5_0", "q4_1", "q4_0")
# Values quantised at once, so that working memory stays small.
_ROWS_AT_ONCE: Final = 1 << 22


def check(source: Exportable) -> None:
    """Raise ``UserError`` if llama.cpp cannot represent the model or its tokenizer."""
    gpt2 = source.config.naming == "gpt2"
    if gpt2 and source.config.activation not in ("gelu", "gelu_tanh"):
        raise UserError(
            f"llama.cpp's GPT-2 has no activation {source.config.activation!r}",
            "only gelu and gelu_tanh can be exported to GGUF",
        )
    if source.config.block_size < 2:
        raise UserError(
            "llama.cpp needs room for a token after the prompt; this model's context is 1 token",
            "give it at least 2 with model.block_size, and train it again",
        )
    gguf_models.check(source)
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
    entries = list(gguf_models.entries(source, added_eot=vocabulary.added_eot))
    writer = GGUFWriter(path, gguf_models.architecture(source))
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


def _storage(entry: Entry, quantization: str) -> tuple[Any, int]:
    """The library's tensor type and the size in bytes of an entry."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[TYPES[quantization][0]]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if entry.keep_f32 or len(entry.shape) == 1:
        kind, block, block_bytes = GGMLQuantizationType.F32, 1, 4
    elif entry.shape[-1] % block:  # a row is not a whole number of blocks
        kind, block, block_bytes = GGMLQuantizationType.F16, 1, 2
    return kind, math.prod(entry.shape) // block * block_bytes


def _encoded(entry: Entry, quantization: str) -> np.ndarray[Any, Any]:
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

    writer.add_name(source.name)
    gguf_models.add_sizes(writer, source, added_eot=vocabulary.added_eot)
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
