"""``config.json`` of a Hugging Face GPT-2: writing it, and reading it without guessing.

A key that would make transformers compute something else than this package's GPT is refused by
name; one that is missing has the value that transformers' ``GPT2Config`` gives it. A key that
transformers does not know changes nothing there, and nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop.foreign import config_of
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.model import homes
from nanogpt_cli.model.config import LAYER_NORM_EPS
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.version import __version__

# Activations that transformers has -> their names there.
ACTIVATIONS: Final = {
    "gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "relu2": "relu2", "silu": "silu",
}  # fmt: skip
_NATIVE: Final = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh", "relu": "relu", "relu2": "relu2", "silu": "silu",
    "swish": "silu",
}  # fmt: skip
# GPT2Config's sizes where a file leaves them out, and its other names for the same keys.
_SIZES: Final = {
    "n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257, "n_positions": 1024,
}  # fmt: skip
_OTHER_NAMES: Final = {
    "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
}  # fmt: skip
# Keys that change what transformers computes, with the value that this package computes.
_FIXED: Final = {
    "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
    "scale_attn_weights": True,
}  # fmt: skip
# Those that are folded into the weights when they are read.
_FOLDED: Final = ("scale_attn_by_inverse_layer_idx", "scale_attn_weights")
# Keys that must be empty, with what a person can do.
_EMPTY: Final = {
    "quantization_config": "its weights are quantised; in transformers, dequantize() and "
    "save_pretrained() write them as floats",
    "pruned_heads": "heads were removed from it; import the model as it was before",
}


def to_json(source: Exportable) -> dict[str, Any]:
    """The content of ``config.json``; ``nanogpt_cli`` holds what GPT-2 has no fields for.

    Raises:
        UserError: transformers' GPT-2 cannot represent the model.
    """
    config = source.config
    if config.activation not in ACTIVATIONS:
        raise UserError(
            f"transformers' GPT-2 has no activation {config.activation!r}",
            f"models with {', '.join(ACTIVATIONS)} can be exported to it",
        )
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
        "activation_function": ACTIVATIONS[config.activation],
        "vocab_size": config.vocab_size, "n_positions": config.block_size,
        "n_ctx": config.block_size, "n_embd": config.n_embd, "n_layer": config.n_layer,
        "n_head": config.n_head, "n_inner": None, "layer_norm_epsilon": LAYER_NORM_EPS,
        "embd_pdrop": config.dropout, "attn_pdrop": config.dropout, "resid_pdrop": config.dropout,
        **_FIXED, "reorder_and_upcast_attn": False, **common(source),
    }  # fmt: skip


def common(source: Exportable) -> dict[str, Any]:
    """The keys of ``config.json`` that every architecture has."""
    eot = None if source.tokenizer is None else source.tokenizer.eot
    return {
        # Explicit nulls: a missing key means the architecture's own, such as GPT-2's 50256.
        "bos_token_id": eot, "eos_token_id": eot, "tie_word_embeddings": source.config.tied,
        "use_cache": True, "dtype": "float32", "torch_dtype": "float32",
        "nanogpt_cli": {
            "version": __version__, "bias": source.config.bias, "step": source.step,
            "tokenizer": source.tokenizer.kind if source.tokenizer else None,
        },
    }  # fmt: skip


def model_type(path: Path, values: Mapping[str, Any]) -> homes.Home:
    """The architecture that a ``config.json`` describes.

    Raises:
        UserError: it is none that is computed here.
    """
    kinds = values.get("architectures") or []
    first = str(kinds[0]) if isinstance(kinds, list) and kinds else ""
    # The oldest files name a class alone.
    named = next((name for name in homes.TITLES if first.lower().startswith(name)), None)
    kind = values.get("model_type", named)
    known = next((name for name in homes.TITLES if name == kind), None)
    if known is None:
        raise UserError(
            f"{path}: model_type {kind!r:.60} is not computed here",
            f"models of these types can be imported: {', '.join(homes.TITLES)}",
        )
    return known


def read(path: Path, values: Mapping[str, Any], notes: list[str]) -> GPTConfig:
    """The configuration in a GPT-2's ``config.json``; all biases are assumed to be there.

    Args:
        path: the file, for messages.
        values: its content.
        notes: sentences for the user are added here.

    Raises:
        UserError: it describes a model that this package does not compute; the key is named.
    """
    sizes = _sizes(path, values)
    _refuse_variants(path, values, sizes)
    activation = values.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _NATIVE:
        raise UserError(
            f"{path}: activation_function {activation!r:.60} is not computed here",
            f"models with one of these can be imported: {', '.join(_NATIVE)}",
        )
    tied = values.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise UserError(
            f"{path}: tie_word_embeddings is {tied!r:.40}, not true or false",
            "true if the output uses the embedding's weights, as in GPT-2, else false",
        )
    if "auto_map" in values:
        notes.append(f"{path.name} names code of its own (auto_map), which is not run")
    block_size = sizes.pop("n_positions")
    return config_of(path, {
        **sizes, "block_size": block_size, "dropout": _dropout(values, notes), "bias": True,
        "activation": _NATIVE[activation], "tied": tied,
    }, {"block_size": "n_positions", "dropout": "resid_pdrop"})  # fmt: skip


def _sizes(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {key: values[key] for key in _SIZES if key in values}
    for other, key in _OTHER_NAMES.items():
        if other in values and found.setdefault(key, values[other]) != values[other]:
            raise UserError(
                f"{path}: {other} = {values[other]!r:.40} contradicts {key} = {found[key]!r:.40}",
                "they mean the same: remove the wrong one from the file",
            )
    if "n_ctx" in values:  # the oldest files have no n_positions
        found.setdefault("n_positions", values["n_ctx"])
    return {**_SIZES, **found}


def _refuse_variants(path: Path, values: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Refuse options of transformers' GPT-2 that change its output and are not computed here."""
    n_inner, n_embd = values.get("n_inner"), sizes["n_embd"]
    if n_inner is not None and (not isinstance(n_embd, int) or n_inner != 4 * n_embd):
        raise UserError(
            f"{path}: n_inner {n_inner!r:.40} is not 4 * n_embd, which GPT-2 has",
            "hidden layers of another width are not computed here; transformers runs this model",
        )
    if values.get("layer_norm_epsilon", LAYER_NORM_EPS) != LAYER_NORM_EPS:
        epsilon = values["layer_norm_epsilon"]
        raise UserError(
            f"{path}: layer_norm_epsilon {epsilon!r:.40} is not {LAYER_NORM_EPS}",
            f"if slightly other logits will do, write {LAYER_NORM_EPS} in a copy of the folder; "
            "fine-tuning then adapts to it",
        )
    for key in _FOLDED:
        if not isinstance(values.get(key, True), bool):
            raise UserError(f"{path}: {key} = {values[key]!r:.40}", "write true or false")
    if values.get("add_cross_attention", False) is not False:
        raise UserError(
            f"{path}: add_cross_attention = {values['add_cross_attention']!r:.40} is not computed "
            "here",
            "write false in a copy of the folder if the weights have no crossattention",
        )
    refuse_filled(path, values)


def refuse_filled(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse a configuration in which a key of any architecture that must be empty is not."""
    for key, remedy in _EMPTY.items():
        if values.get(key):
            raise UserError(f"{path}: {key} is not supported", remedy)


def fold_attention_scale(model: GPT, values: Mapping[str, Any], notes: list[str]) -> None:
    """Put the configuration's scale of attention into the queries, which comes to the same.

    Without ``scale_attn_weights`` transformers does not divide scores by the root of a head's size;
    with ``scale_attn_by_inverse_layer_idx`` it divides them by the number of the layer as well.
    """
    keys = [key for key in _FOLDED if values.get(key, _FIXED[key]) is not _FIXED[key]]
    if not keys:
        return
    unscaled = math.sqrt(model.config.head_size) if "scale_attn_weights" in keys else 1.0
    by_layer = "scale_attn_by_inverse_layer_idx" in keys
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".attn.c_attn." in name:
                layer = int(name.split(".")[2])
                # Queries are the first rows.
                parameter[: model.config.n_embd] *= unscaled / (layer + 1 if by_layer else 1)
    notes.append(f"{' and '.join(keys)}: folded into the weights of the queries")


def _dropout(values: Mapping[str, Any], notes: list[str]) -> Any:
    rates = {key: values.get(key, 0.1) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    rate = rates["resid_pdrop"]
    if any(other != rate for other in rates.values()):
        said = ", ".join(f"{key} {value!r:.20}" for key, value in rates.items())
        notes.append(f"one dropout rate is kept for all places: {rate!r:.20} (of {said})")
    return rate
