"""Writing the tokenizer files of transformers, transformers.js and others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nanogpt_cli import files
from nanogpt_cli.text.huggingface_files import (
    GPT2_KINDS,
    MERGES,
    MERGES_HEADER,
    TOKENIZER,
    VOCABULARY,
    to_json,
)
from nanogpt_cli.text.tokenizer import END_OF_TEXT, Tokenizer


def write(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and, for GPT-2, the older two files."""
    value = to_json(tokenizer)
    _dump(folder / TOKENIZER, value)
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
    if tokenizer.kind in GPT2_KINDS:
        config |= {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
        _dump(folder / VOCABULARY, value["model"]["vocab"])
        merges = MERGES_HEADER + "".join(f"{line}\n" for line in value["model"]["merges"])
        (folder / MERGES).write_text(merges, encoding="utf-8", newline="\n")
    files.write_json(folder / "tokenizer_config.json", config)


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8"))


def _name_of(value: dict[str, Any], id: int) -> str:
    for added in value.get("added_tokens") or []:
        if added["id"] == id:
            return str(added["content"])
    vocab = value["model"]["vocab"]
    return next((token for token, i in vocab.items() if i == id), END_OF_TEXT)
