"""The parameters of a GPT by name: their shapes, and the block each belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nanogpt_cli.model.gpt import GPTConfig

_BLOCK = re.compile(r"(?:^|\.)h\.(\d+)\.")


def shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a GPT; a tied head is listed once, as ``wte``."""
    C, H = config.n_embd, config.hidden_size
    rows = H * (2 if config.activation == "swiglu" else 1)
    block = {"ln_1.weight": (C,), "ln_1.bias": (C,), "attn.c_attn.weight": (3 * C, C)}
    block |= {"attn.c_attn.bias": (3 * C,), "attn.c_proj.weight": (C, C), "attn.c_proj.bias": (C,)}
    block |= {"ln_2.weight": (C,), "ln_2.bias": (C,), "mlp.c_fc.weight": (rows, C)}
    block |= {"mlp.c_fc.bias": (rows,), "mlp.c_proj.weight": (C, H), "mlp.c_proj.bias": (C,)}
    found: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (config.vocab_size, C),
        "transformer.wpe.weight": (config.block_size, C),
    }
    for layer in range(config.n_layer):
        found |= {f"transformer.h.{layer}.{name}": shape for name, shape in block.items()}
    found |= {"transformer.ln_f.weight": (C,), "transformer.ln_f.bias": (C,)}
    if not config.tied:
        found["lm_head.weight"] = (config.vocab_size, C)
    return {n: s for n, s in found.items() if config.bias or not n.endswith(".bias")}


def layer_of(name: str) -> int:
    """Index of the block that a parameter belongs to, or -1 outside the blocks.

    It also takes names with a prefix (``_orig_mod.``) or without ``transformer.``.
    """
    match = _BLOCK.search(name)
    return int(match.group(1)) if match else -1


def of_first_block(name: str) -> str:
    """The name of the same parameter in block 0; a name outside the blocks stays as it is."""
    match = _BLOCK.search(name)
    return f"{name[: match.start(1)]}0{name[match.end(1) :]}" if match else name


def is_block_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter is one of a block's matrices, which Muon and the statistics take."""
    return len(shape) >= 2 and layer_of(name) >= 0
