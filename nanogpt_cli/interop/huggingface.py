"""Writing and reading Hugging Face folders of the architecture ``gpt2``, without transformers.

Source of the names and fields: transformers' ``models/gpt2`` (configuration and modelling). Its
``Conv1D`` stores the four matrices of a block transposed. Names are written without the prefix
``transformer.``, as in OpenAI's release, which every known reader accepts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from nanogpt_cli import files, foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import Foreign, hf_tokenizer, tensorfile
from nanogpt_cli.interop.foreign import (
    GPT2_ROWS,
    TensorSource,
    build,
    config_of,
    open_safetensors,
    strip_prefixes,
)
from nanogpt_cli.interop.source import Exportable, FoldedWeights
from nanogpt_cli.model.gpt import LAYER_NORM_EPS, GPTConfig
from nanogpt_cli.text import huggingface_files, tokenizers
from nanogpt_cli.text.tokenizer import Tokenizer
from nanogpt_cli.version import __version__

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
# Activations that transformers' GPT-2 supports -> their names there.
ACTIVATIONS: Final = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}
_NATIVE: Final = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip
_TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
# Causal masks, which old releases stored as buffers.
_MASKS = re.compile(r"\.attn\.(bias|masked_bias)$")
_ZERO_BIASES = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def write(source: Exportable, folder: Path, report: Callable[[str], None]) -> None:
    """Fill ``folder`` with weights, configuration and tokenizer.

    Args:
        source: the model; its tensors are read one at a time.
        folder: an empty folder.
        report: receives lines of commentary.

    Raises:
        UserError: the architecture cannot represent the model.
    """
    config = source.config
    if config.activation not in ACTIVATIONS:
        raise UserError(
            f"transformers' GPT-2 has no activation {config.activation!r}",
            f"models with {', '.join(ACTIVATIONS)} can be exported to it",
        )
    report(f"writing {source.weights.nbytes / 1e6:,.1f} MB of weights")
    tensorfile.write(folder / WEIGHTS, dict(_entries(source.weights)), {"format": "pt"})
    write_json_files(source, folder)


def write_json_files(source: Exportable, folder: Path) -> None:
    """Write ``config.json``, ``generation_config.json`` and the tokenizer's files."""
    files.write_json(folder / "config.json", config_json(source))
    eot = None if source.tokenizer is None else source.tokenizer.eot
    ids = {} if eot is None else {"bos_token_id": eot, "eos_token_id": eot, "pad_token_id": eot}
    files.write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    if source.tokenizer is not None:
        hf_tokenizer.write(source.tokenizer, folder, source.config.block_size)


def config_json(source: Exportable) -> dict[str, Any]:
    """The content of ``config.json``; ``nanogpt_cli`` holds what GPT-2 has no fields for."""
    config, original = source.config, source.weights.original
    eot = None if source.tokenizer is None else source.tokenizer.eot
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
        "activation_function": ACTIVATIONS[config.activation],
        "vocab_size": config.vocab_size, "n_positions": config.block_size,
        "n_ctx": config.block_size, "n_embd": config.n_embd, "n_layer": config.n_layer,
        "n_head": config.n_head, "n_inner": None, "layer_norm_epsilon": LAYER_NORM_EPS,
        "embd_pdrop": config.dropout, "attn_pdrop": config.dropout, "resid_pdrop": config.dropout,
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False, "add_cross_attention": False,
        # Explicit nulls: a missing key means GPT-2's 50256.
        "bos_token_id": eot, "eos_token_id": eot, "tie_word_embeddings": config.tied,
        "use_cache": True, "dtype": "float32", "torch_dtype": "float32",
        "nanogpt_cli": {
            "version": __version__, "bias": original.bias, "step": source.step,
            "tokenizer": source.tokenizer.kind if source.tokenizer else None,
            "padded_vocab_size": original.vocab_size,
        },
    }  # fmt: skip


def _entries(weights: FoldedWeights) -> Iterator[tuple[str, tensorfile.Entry]]:
    prefix = "" if weights.config.tied else "transformer."
    for name in weights.shapes:
        target = name if name == "lm_head.weight" else prefix + name.removeprefix("transformer.")
        yield target, entry(weights, name)
    if not weights.config.bias:
        for name, size in missing_biases(weights.config):
            yield prefix + name, tensorfile.Entry((size,), partial(torch.zeros, size))


def entry(weights: FoldedWeights, name: str) -> tensorfile.Entry:
    """A tensor as transformers stores it: the matrices of a block transposed."""
    shape = weights.shapes[name]
    if _TRANSPOSED.search(name):
        return tensorfile.Entry(shape[::-1], lambda: weights.get(name).T.contiguous())
    return tensorfile.Entry(shape, lambda: weights.get(name))


def missing_biases(config: GPTConfig) -> Iterator[tuple[str, int]]:
    """Names (without prefix) and sizes of the zero biases to add to a model without biases."""
    sizes = {"attn.c_attn": 3 * config.n_embd, "mlp.c_fc": config.hidden_size}
    for layer in range(config.n_layer):
        for part in _ZERO_BIASES:
            yield f"h.{layer}.{part}.bias", sizes.get(part, config.n_embd)
    yield "ln_f.bias", config.n_embd


def is_folder(path: Path) -> bool:
    """Whether ``path`` looks like a Hugging Face model folder."""
    names = (WEIGHTS, INDEX, "pytorch_model.bin")
    there = foreign_files.present
    return there(path / "config.json") and any(there(path / name) for name in names)


def read(folder: Path, tokenizer: Tokenizer | None = None) -> Foreign:
    """The model and tokenizer of a Hugging Face GPT-2 folder.

    Args:
        folder: holds configuration and weights.
        tokenizer: replaces the folder's own, which is then not read.

    Raises:
        UserError: a part is missing, damaged, or not that of a GPT-2; the message names it.
    """
    path = folder / "config.json"
    values = foreign_files.read_object(path)
    with _tensors(folder) as tensors:
        named = _native_names(tensors)
        config = _config(path, values, tensors, named)
        notes: list[str] = []
        config, left_out = _without_zero_biases(config, values, tensors, named, notes)
        model = build(config, tensors, named, left_out, transposed=_TRANSPOSED, source=str(folder))
    tokenizer = tokenizer or huggingface_files.read(folder)
    if tokenizer is None and config.vocab_size in GPT2_ROWS:
        tokenizer = tokenizers.get("gpt2")
        notes.append("no tokenizer found: GPT-2's is assumed from the size of the vocabulary")
    elif tokenizer is None:
        notes.append("no tokenizer found: text cannot be encoded; name one with --tokenizer")
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model "
            f"{config.vocab_size} rows",
            "the tokenizer files belong to another model",
        )
    marker = values.get("nanogpt_cli")
    step = marker.get("step", 0) if isinstance(marker, dict) else 0
    return Foreign(model, tokenizer, tuple(notes), step if isinstance(step, int) else 0)


def _tensors(folder: Path) -> TensorSource:
    if foreign_files.present(folder / WEIGHTS):
        return open_safetensors([folder / WEIGHTS])
    if foreign_files.present(folder / INDEX):
        return open_safetensors(_shards(folder))
    if foreign_files.present(folder / "pytorch_model.bin"):
        from nanogpt_cli.interop import safe_torch

        found = safe_torch.load(folder / "pytorch_model.bin")
        return safe_torch.tensors_of(found, folder / "pytorch_model.bin")
    raise UserError(f"{folder} holds no {WEIGHTS}", "a Hugging Face folder has one")


def _shards(folder: Path) -> list[Path]:
    """The files that an index names, which must be plain names inside the folder."""
    index = foreign_files.read_object(folder / INDEX)
    weight_map = index.get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise UserError(f"{folder / INDEX} names {name!r:.80}, which is not a plain file name")
    if not names:
        raise UserError(f"{folder / INDEX} has no weight_map")
    return [folder / name for name in sorted(set(names))]


def _native_names(tensors: TensorSource) -> dict[str, str]:
    """Native name -> name in the file, without masks."""
    found = {}
    for name in tensors.shapes:
        bare = strip_prefixes(name)
        if _MASKS.search(bare):
            continue
        native = bare if bare.startswith(("transformer.", "lm_head.")) else f"transformer.{bare}"
        if native in found:
            raise UserError(f"{tensors.name} holds {native} twice")
        found[native] = name
    return found


def _config(
    path: Path, values: dict[str, Any], tensors: TensorSource, named: dict[str, str]
) -> GPTConfig:
    if values.get("model_type") != "gpt2":
        raise UserError(
            f"{path} describes a {values.get('model_type')!r:.60} model, not gpt2",
            "only the GPT-2 architecture can be imported",
        )
    _refuse_variants(path, values)
    activation = values.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _NATIVE:
        raise UserError(f"{path}: activation_function {activation!r:.60} is not supported")
    tied = values.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise UserError(f"{path}: tie_word_embeddings must be true or false")
    if tied and "lm_head.weight" in named:  # some writers store the tied head as well
        _check_tied(tensors, named)
    sizes = ("n_layer", "n_head", "n_embd", "vocab_size")
    return config_of(path, {
        **{key: values.get(key) for key in sizes},
        "block_size": values.get("n_positions", values.get("n_ctx")),
        "dropout": values.get("resid_pdrop", 0.1), "bias": True,
        "activation": _NATIVE[activation], "tied": tied,
    }, {"block_size": "n_positions", "dropout": "resid_pdrop"})  # fmt: skip


def _refuse_variants(path: Path, values: dict[str, Any]) -> None:
    """Refuse options of transformers' GPT-2 that change its output and are not supported here."""
    n_inner, n_embd = values.get("n_inner"), values.get("n_embd")
    if n_inner is not None and (not isinstance(n_embd, int) or n_inner != 4 * n_embd):
        raise UserError(f"{path}: n_inner {n_inner!r:.40} is not 4 * n_embd, which GPT-2 has")
    if values.get("layer_norm_epsilon", LAYER_NORM_EPS) != LAYER_NORM_EPS:
        epsilon = values["layer_norm_epsilon"]
        raise UserError(f"{path}: layer_norm_epsilon {epsilon!r:.40} is not {LAYER_NORM_EPS}")
    for key, wanted in (
        ("scale_attn_by_inverse_layer_idx", False), ("add_cross_attention", False),
        ("scale_attn_weights", True),
    ):  # fmt: skip
        if values.get(key, wanted) is not wanted:
            raise UserError(f"{path}: {key} = {values[key]!r:.40} is not supported")


def _check_tied(tensors: TensorSource, named: dict[str, str]) -> None:
    head, embedding = "lm_head.weight", "transformer.wte.weight"
    if embedding not in named or tensors.shapes[named[head]] != tensors.shapes[named[embedding]]:
        raise UserError(f"{tensors.name}: lm_head.weight is not the embedding it is said to be")
    if not torch.equal(tensors.get(named[head]), tensors.get(named[embedding])):
        raise UserError(
            f"{tensors.name}: lm_head.weight differs from the embedding, the configuration says "
            "they are tied"
        )
    del named[head]


def _without_zero_biases(
    config: GPTConfig,
    values: dict[str, Any],
    tensors: TensorSource,
    named: dict[str, str],
    notes: list[str],
) -> tuple[GPTConfig, frozenset[str]]:
    """Remove the zero biases that the export of a model without biases added."""
    marker = values.get("nanogpt_cli")
    if not isinstance(marker, dict) or marker.get("bias") is not False:
        return config, frozenset()
    biases = frozenset(name for name in named if name.endswith(".bias"))
    if any(tensors.get(named[name]).any() for name in biases):
        notes.append("the model has no biases by its configuration, but they are not 0: kept")
        return config, frozenset()
    return replace(config, bias=False), biases
