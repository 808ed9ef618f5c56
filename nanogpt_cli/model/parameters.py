"""The parameters of a GPT by name: their shapes, roles, and the block each belongs to.

There are two sets of names, GPT-2's and Llama's (``GPTConfig.naming``); this module alone knows
them both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from nanogpt_cli.model.config import GPTConfig
from nanogpt_cli.schemes.scheme import FINAL_NORM

_BLOCK = re.compile(r"(?:^|\.)(?:h|layers)\.(\d+)\.")
# What stands in front of a module's own name within the model.
_OUTER = re.compile(r"^(?:transformer|model)\.(?:(?:h|layers)\.\d+\.)?")
_CLASS_OF_MODULE = {
    "wte": "wte", "embed_tokens": "wte", "wpe": "wpe", "embed_positions": "wpe",
    "lm_head": "lm_head", "attn.c_attn": "qkv", "attn.c_proj": "attn_proj", "mlp.c_fc": "fc",
    "mlp.c_proj": "mlp_proj", "ln_1": "ln", "ln_2": "ln", "ln_f": "ln",
    "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v",
    "self_attn.o_proj": "attn_proj", "mlp.gate_proj": "gate", "mlp.up_proj": "fc",
    "mlp.down_proj": "mlp_proj", "input_layernorm": "ln", "post_attention_layernorm": "ln",
    "self_attn.q_norm": "ln", "self_attn.k_norm": "ln", "norm": "ln",
}  # fmt: skip
_FINAL_NORMS = ("ln_f", "norm")
# The tensors with a row for each token; a tied model has one of them.
TOKEN_TABLES = ("transformer.wte.weight", "model.embed_tokens.weight", "lm_head.weight")


def token_embedding(config: GPTConfig) -> str:
    """The name of the token embedding, which is the head as well in a tied model."""
    return TOKEN_TABLES[0 if config.naming == "gpt2" else 1]


def shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a GPT; a tied head is listed once, as the embedding."""
    if config.naming == "gpt2":
        body, tokens, positions, last = "transformer", "wte", "wpe", "ln_f"
    else:
        body, tokens, positions, last = "model", "embed_tokens", "embed_positions", "norm"
    C = config.n_embd
    found: dict[str, tuple[int, ...]] = {f"{body}.{tokens}.weight": (config.vocab_size, C)}
    if config.position == "learned":
        found[f"{body}.{positions}.weight"] = (config.block_size, C)
    found |= block_shapes(config, range(config.n_layer))
    found |= dict(_norm(f"{body}.{last}", config))
    if not config.tied:
        found["lm_head.weight"] = (config.vocab_size, C)
    return found


def block_shapes(config: GPTConfig, layers: Iterable[int]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of some of the blocks, from their indices."""
    if config.naming == "gpt2":
        prefix, block = "transformer.h", dict(_gpt2_block(config))
    else:
        prefix, block = "model.layers", dict(_llama_block(config))
    return {f"{prefix}.{n}.{name}": shape for n in layers for name, shape in block.items()}


_Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _gpt2_block(config: GPTConfig) -> _Shapes:
    C, H, bias = config.n_embd, config.hidden_size, config.bias is True
    yield from _norm("ln_1", config)
    yield from _linear("attn.c_attn", 3 * C, C, bias=bias)
    yield from _linear("attn.c_proj", C, C, bias=bias)
    yield from _norm("ln_2", config)
    yield from _linear("mlp.c_fc", H * (2 if config.gated else 1), C, bias=bias)
    yield from _linear("mlp.c_proj", C, H, bias=bias)


def _llama_block(config: GPTConfig) -> _Shapes:
    C, H, bias = config.n_embd, config.hidden_size, config.bias is True
    yield from _norm("input_layernorm", config)
    yield from _linear("self_attn.q_proj", config.q_size, C, bias=bool(config.bias))
    yield from _linear("self_attn.k_proj", config.kv_size, C, bias=bool(config.bias))
    yield from _linear("self_attn.v_proj", config.kv_size, C, bias=bool(config.bias))
    yield from _linear("self_attn.o_proj", C, config.q_size, bias=bias)
    if config.qk_norm:
        yield "self_attn.q_norm.weight", (config.head_size,)
        yield "self_attn.k_norm.weight", (config.head_size,)
    yield from _norm("post_attention_layernorm", config)
    if config.gated:
        yield from _linear("mlp.gate_proj", H, C, bias=bias)
    yield from _linear("mlp.up_proj", H, C, bias=bias)
    yield from _linear("mlp.down_proj", C, H, bias=bias)


def _linear(name: str, rows: int, columns: int, *, bias: bool) -> _Shapes:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _norm(name: str, config: GPTConfig) -> _Shapes:
    yield f"{name}.weight", (config.n_embd,)
    if config.norm == "layer" and config.bias is True:
        yield f"{name}.bias", (config.n_embd,)


def tensor_class(name: str) -> str:
    """The class of a parameter, from its name; ``"qkv"`` for the fused ``c_attn`` matrix.

    Raises:
        ValueError: no GPT has a parameter of this name.
    """
    module, _, leaf = _OUTER.sub("", name).rpartition(".")
    kind = _CLASS_OF_MODULE.get(module)
    if kind is None or leaf not in ("weight", "bias"):
        raise ValueError(f"{name} is not a parameter of a GPT")
    if leaf == "weight":
        return kind
    return "ln_bias" if kind == "ln" else "bias"


def update_class(name: str) -> str:
    """The class of a parameter for an optimizer: ``tensor_class``, with the final norm apart.

    Raises:
        ValueError: no GPT has a parameter of this name.
    """
    kind = tensor_class(name)
    final = _OUTER.sub("", name).rpartition(".")[0] in _FINAL_NORMS
    return kind.replace("ln", FINAL_NORM) if final else kind


def stacked_matrices(name: str) -> int:
    """How many matrices lie on top of each other in a parameter: 3 in ``c_attn``, else 1."""
    return 3 if name.endswith("attn.c_attn.weight") else 1


def layer_of(name: str) -> int:
    """Index of the block that a parameter belongs to, or -1 outside the blocks.

    It also takes names with a prefix (``_orig_mod.``) or without ``transformer.`` or ``model.``.
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
