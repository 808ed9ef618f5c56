"""Writing and reading Hugging Face folders of GPT-2, Llama, Qwen2 and Qwen3, without transformers.

Source of the names and fields: transformers' ``models/gpt2`` (configuration and modelling). Its
``Conv1D`` stores the four matrices of a block transposed. Names are written without the prefix
``transformer.``, as in OpenAI's release, which every known reader accepts. The other three have the
names and the layout of ``model/gpt.py`` (see ``llama.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from nanogpt_cli import files, foreign_files, shell
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import LoadedModel, hf_config, llama, llama_config, safe_torch
from nanogpt_cli.interop.foreign import (
    GPT2_ROWS,
    TensorSource,
    build,
    native_names,
    open_safetensors,
)
from nanogpt_cli.interop.source import Exportable, FoldedWeights, check_vocabulary
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.text.tokenizers import factory, huggingface_files
from nanogpt_cli.text.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from nanogpt_cli.training.checkpoints import tensor_files
from nanogpt_cli.training.checkpoints.tensor_files import LazyTensor

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
PICKLED: Final = "pytorch_model.bin"
_TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_ZERO_BIASES = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def check(source: Exportable) -> None:
    """Raise ``UserError`` if the architecture cannot represent the model or its tokenizer."""
    _config_json(source)
    if source.tokenizer is not None:
        huggingface_files.to_json(source.tokenizer)


def write(source: Exportable, folder: Path, report: Callable[[str], None]) -> None:
    """Fill ``folder`` with weights, configuration and tokenizer.

    Args:
        source: the model; its tensors are read one at a time.
        folder: an empty folder.
        report: receives lines of commentary.

    Raises:
        UserError: see ``check``.
    """
    write_json_files(source, folder)
    report(f"writing {source.weights.nbytes / 1e6:,.1f} MB of weights")
    tensor_files.write_one_by_one(folder / WEIGHTS, dict(_entries(source.weights)))


def write_json_files(source: Exportable, folder: Path) -> None:
    """Write ``config.json``, ``generation_config.json`` and the tokenizer's files."""
    files.write_json(folder / CONFIG, _config_json(source))
    eot = None if source.tokenizer is None else source.tokenizer.eot
    ids = {} if eot is None else {"bos_token_id": eot, "eos_token_id": eot, "pad_token_id": eot}
    files.write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    if source.tokenizer is not None:
        _write_tokenizer(source.tokenizer, folder, source.config.block_size)


def _config_json(source: Exportable) -> dict[str, Any]:
    gpt2 = source.config.naming == "gpt2"
    return hf_config.to_json(source) if gpt2 else llama_config.to_json(source)


def _write_tokenizer(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and, for GPT-2, the older two files."""
    value = huggingface_files.to_json(tokenizer)
    _dump(folder / huggingface_files.TOKENIZER, value)
    config: dict[str, Any] = {
        # Without a class, or with GPT-2's for another vocabulary, transformers 5 splits words as
        # GPT-2 does and drops every space and newline of a character vocabulary.
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Otherwise transformers 4 passes token_type_ids of 0, and GPT-2 adds wte[0] everywhere.
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
    }
    if tokenizer.eot is not None:
        name = _name_of(value, tokenizer.eot)
        config |= {"bos_token": name, "eos_token": name, "unk_token": name, "pad_token": name}
    if tokenizer.kind in huggingface_files.GPT2_KINDS:
        config |= {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
        _dump(folder / huggingface_files.VOCABULARY, value["model"]["vocab"])
        merges = huggingface_files.MERGES_HEADER + "".join(
            f"{line}\n" for line in value["model"]["merges"]
        )
        (folder / huggingface_files.MERGES).write_text(merges, encoding="utf-8", newline="\n")
    files.write_json(folder / "tokenizer_config.json", config)


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8"))


def _name_of(value: dict[str, Any], id: int) -> str:
    for added in value.get("added_tokens") or []:
        if added["id"] == id:
            return str(added["content"])
    vocab = value["model"]["vocab"]
    return next((token for token, i in vocab.items() if i == id), END_OF_TEXT)


def _entries(weights: FoldedWeights) -> Iterator[tuple[str, LazyTensor]]:
    if weights.config.naming != "gpt2":
        yield from ((name, entry(weights, name)) for name in weights.shapes)
        return
    prefix = "" if weights.config.tied else "transformer."
    for name in weights.shapes:
        target = name if name == "lm_head.weight" else prefix + name.removeprefix("transformer.")
        yield target, entry(weights, name)
    if not weights.config.bias:
        for name, size in missing_biases(weights.config):
            yield prefix + name, LazyTensor((size,), partial(torch.zeros, size))


def entry(
    weights: FoldedWeights, name: str, transposed: re.Pattern[str] = _TRANSPOSED
) -> LazyTensor:
    """A tensor as transformers stores it; other formats have other matrices ``transposed``."""
    shape = weights.shapes[name]
    if transposed.search(name):
        return LazyTensor(shape[::-1], lambda: weights.get(name).T.contiguous())
    return LazyTensor(shape, lambda: weights.get(name))


def missing_biases(config: GPTConfig) -> Iterator[tuple[str, int]]:
    """Names (without prefix) and sizes of the zero biases to add to a model without biases."""
    sizes = {"attn.c_attn": 3 * config.n_embd, "mlp.c_fc": config.hidden_size}
    for layer in range(config.n_layer):
        for part in _ZERO_BIASES:
            yield f"h.{layer}.{part}.bias", sizes.get(part, config.n_embd)
    yield "ln_f.bias", config.n_embd


def folder_of(path: Path) -> Path | None:
    """The Hugging Face model folder that ``path`` is or is a file of; None if it is neither."""
    names = [name for kind in (WEIGHTS, PICKLED) for name in (kind, f"{kind}.index.json")]
    if path.name in (CONFIG, *names) and not path.is_dir():
        path = path.parent
    there = foreign_files.present
    return path if there(path / CONFIG) and any(there(path / name) for name in names) else None


def read(folder: Path, tokenizer: Tokenizer | None = None) -> LoadedModel:
    """The model and tokenizer of a Hugging Face folder.

    Args:
        folder: holds configuration and weights.
        tokenizer: replaces the folder's own, which is then not read.

    Raises:
        UserError: a part is missing, damaged, or of a model that is not computed here; the message
            names it.
    """
    path = folder / CONFIG
    values = foreign_files.read_object(path)
    notes: list[str] = []
    gpt2 = hf_config.model_type(path, values) == "gpt2"
    config = (hf_config if gpt2 else llama_config).read(path, values, notes)
    with _tensors(folder) as tensors:
        named = native_names(tensors, config)
        left_out: frozenset[str] = frozenset()
        if gpt2:
            config, left_out = _without_zero_biases(config, values, tensors, named, notes)
        _check_head(path, config, named)
        model = build(
            config, tensors, named, left_out, transposed=_TRANSPOSED,
            remedy=_without_other_heads(folder, config),
        )  # fmt: skip
    if gpt2:
        hf_config.fold_attention_scale(model, values, notes)
    tokenizer = tokenizer or huggingface_files.read(folder)
    if tokenizer is None and config.vocab_size in GPT2_ROWS:
        tokenizer = factory.get("gpt2")
        notes.append("no tokenizer found: GPT-2's is assumed from the size of the vocabulary")
    elif tokenizer is None:
        notes.append("no tokenizer found: text cannot be encoded; name one with --tokenizer")
    check_vocabulary(str(folder), tokenizer, config)
    end = values.get("eos_token_id")
    if type(end) is int and tokenizer is not None and end >= tokenizer.vocab_size:
        notes.append(
            f"config.json names the end-of-text id {end}, but the ids end at "
            f"{tokenizer.vocab_size - 1}: it is ignored"
        )
    marker = values.get("nanogpt_cli")
    step = marker.get("step", 0) if isinstance(marker, dict) else 0
    step = step if isinstance(step, int) else 0
    return LoadedModel(model, tokenizer, str(folder), step, notes=tuple(notes))


def _without_other_heads(folder: Path, config: GPTConfig) -> str:
    """What to do about a model with another head or adapters."""
    alone = f"{folder}-lm"
    gpt2 = config.naming == "gpt2"
    kind = "GPT2LMHeadModel" if gpt2 else llama.of(config).model_class
    return (
        "save the language model alone, in transformers: "
        f"{kind}.from_pretrained({str(folder)!r}).save_pretrained({alone!r}), then "
        + shell.hint("import", alone, "--tokenizer", folder)
    )


def _check_head(path: Path, config: GPTConfig, named: Mapping[str, str]) -> None:
    if not config.tied and "lm_head.weight" not in named:
        raise UserError(
            f"{path}: tie_word_embeddings is false, but the weights lack lm_head.weight",
            "write true if the output uses the embedding's weights",
        )


def _tensors(folder: Path) -> TensorSource:
    """The weights of a folder; of several files that which transformers prefers."""
    for name, opened in ((WEIGHTS, open_safetensors), (PICKLED, safe_torch.open_files)):
        if foreign_files.present(folder / name):
            return opened([folder / name])
        if foreign_files.present(folder / f"{name}.index.json"):
            return opened(_shards(folder / f"{name}.index.json", name.rpartition(".")[2]))
    raise UserError(f"{folder} holds no {WEIGHTS}", "a Hugging Face folder has one")


def _shards(index: Path, ending: str) -> list[Path]:
    """The files that an index names, which must be plain names inside the folder."""
    weight_map = foreign_files.read_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(rf"[\w.-]+\.{ending}", name):
            raise UserError(f"{index} names {name!r:.80}, which is not a plain file name")
    if not names:
        raise UserError(f"{index} has no weight_map")
    return [index.parent / name for name in sorted(set(names))]


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
