"""Small models with every weight in play, and tokenizers of each kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanogpt_cli.interop import source
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokenizers.tokenizer import CharTokenizer, Tokenizer
from nanogpt_cli.training.checkpoints import checkpoint

# Spaces, newlines, tabs and characters of one to four bytes in UTF-8.
TEXT = "To be, or not to be:\n\tthat is the question; naïve café — 你好 🙂é\r\n" * 3


def make_model(seed: int = 0, **changes: Any) -> GPT:
    """A GPT whose biases and LayerNorms are not at their initial values."""
    values: dict[str, Any] = {
        "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 24, "vocab_size": 65,
        "dropout": 0.0, "bias": True, "activation": "gelu",
    }  # fmt: skip
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**values, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1) * 0.3)
    return model


def char_tokenizer(**options: Any) -> CharTokenizer:
    return CharTokenizer.of_text(TEXT, **options)


def exportable(tokenizer: Tokenizer | None = None, **changes: Any) -> Exportable:
    tokenizer = tokenizer or char_tokenizer()
    return source.from_model(
        make_model(**{"vocab_size": tokenizer.vocab_size, **changes}), tokenizer, "tiny"
    )


# What the homes beside GPT-2 are made of, with grouped queries and a hidden size of its own.
_LLAMA: dict[str, Any] = {
    "norm": "rms", "norm_eps": 1e-6, "position": "rope", "rope_theta": 500.0, "bias": False,
    "activation": "swiglu", "hidden": 72, "n_head": 4, "n_kv_head": 2,
}  # fmt: skip
HOMES = {"llama": _LLAMA, "qwen2": _LLAMA | {"bias": "qkv"}, "qwen3": _LLAMA | {"qk_norm": True}}


def logits(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids)[0]
    return found


def same_tensors(one: GPT, other: GPT) -> bool:
    ours, theirs = checkpoint.model_tensors(one), checkpoint.model_tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def make_run(path: Path, **changes: Any) -> RunFolder:
    tokenizer = char_tokenizer()
    run = RunFolder(path)
    run.checkpoints.mkdir(parents=True)
    run.recipe.write_text('[run]\nname = "tiny"\n')
    model = make_model(vocab_size=tokenizer.vocab_size, **{"bias": False, **changes})
    checkpoint.save(run, model, {"step": 7}, tokenizer=tokenizer.to_json())
    return run


def quiet(line: str) -> None:
    """A report that nobody reads."""


class Payload:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


LLMC_KINDS = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
    "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
    "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip


def write_llmc(path: Path, model: GPT, *, version: int = 3, padded: int = 72) -> Path:
    config, tensors = model.config, model.state_dict()
    header = np.zeros(256, "<i4")
    header[:8] = [
        20240326, version, config.block_size, config.vocab_size, config.n_layer, config.n_head,
        config.n_embd, padded,
    ]  # fmt: skip
    padding = torch.full((padded - config.vocab_size, config.n_embd), 9.0)
    parts = [torch.cat([tensors["transformer.wte.weight"], padding])]
    parts.append(tensors["transformer.wpe.weight"])
    for kind in LLMC_KINDS:
        parts += [tensors[f"transformer.h.{layer}.{kind}"] for layer in range(config.n_layer)]
    parts += [tensors["transformer.ln_f.weight"], tensors["transformer.ln_f.bias"]]
    flat = torch.cat([part.flatten() for part in parts])
    if version == 5:
        body = flat.bfloat16().view(torch.int16).numpy().astype("<i2").tobytes()
    else:
        body = flat.numpy().astype("<f4").tobytes()
    path.write_bytes(header.tobytes() + body)
    return path
