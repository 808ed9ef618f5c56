"""Parts of transformers' decoders and of our own GPT, by the names of their parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nanogpt_cli.modules.anatomy import Part

# The last names of a parameter's path, and its role.
_ROLES = {
    "wte": r"wte|embed_tokens|embed_in|word_embeddings",
    "wpe": r"wpe|embed_positions",
    "lm_head": r"lm_head|embed_out",
    "q": r"q_proj",
    "k": r"k_proj",
    "v": r"v_proj",
    "qkv": r"c_attn|query_key_value|qkv_proj|Wqkv",
    "attn_proj": r"attn\.c_proj|o_proj|out_proj|(self_attention|attention)\.dense|attn\.dense",
    "gate_fc": r"gate_up_proj",
    "gate": r"gate_proj",
    "fc": r"c_fc|fc1|fc_in|up_proj|dense_h_to_4h|linear1",
    "mlp_proj": r"mlp\.c_proj|fc2|fc_out|down_proj|dense_4h_to_h|linear2",
    "router": r"mlp\.gate|block_sparse_moe\.gate",
    "qk_norm": r"q_norm|k_norm|q_layernorm|k_layernorm",
    "norm": r"ln\w*|\w*norm\w*|norm",
}


def parts_of(model: nn.Module) -> Iterator[tuple[Part, Tensor]]:
    """Every part of a model with its values, float32."""
    conv = {n for n, m in model.named_modules() if type(m).__name__ == "Conv1D"}
    for name, parameter in model.named_parameters():
        turned = name.rpartition(".")[0] in conv and parameter.dim() == 2
        for part in _parts(name, parameter, model, turned):
            yield part, part.of(parameter).float().contiguous()


def _role(name: str) -> str:
    bare = re.sub(r"\.weight$|\.bias$", "", name)
    for role, pattern in _ROLES.items():
        if re.search(rf"(^|\.)({pattern})$", bare):
            return role
    return "other"


def _parts(name: str, parameter: Tensor, model: nn.Module, turned: bool) -> Iterator[Part]:
    number = re.search(r"\.(\d+)\.", name)
    layer = int(number[1]) if number else -1
    role = _role(name)
    if name.endswith("bias"):
        yield Part(name, "bias", layer)
    elif role == "qkv":
        rows = parameter.shape[1] if turned else parameter.shape[0]
        for kind, index in zip("qkv", _thirds(name, rows, model), strict=True):
            yield Part(name, kind, layer, index, turned, kind)
    elif role == "gate_fc":
        shape = parameter.shape
        half = shape[-2] // 2
        index = torch.arange(shape[-2] * (shape[0] if len(shape) > 2 else 1))
        for kind, chosen in (
            ("gate", index % (2 * half) < half),
            ("fc", index % (2 * half) >= half),
        ):
            yield Part(name, kind, layer, index[chosen], turned, kind)
    else:
        yield Part(name, role, layer, None, turned)


def _thirds(name: str, rows: int, model: nn.Module) -> list[Tensor]:
    """Rows of q, k and v in a fused matrix: contiguous, or in turns head by head."""
    config: Any = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", 1)
    shared = getattr(config, "num_key_value_heads", None) or heads
    kind = getattr(config, "model_type", "")
    index = torch.arange(rows)
    if kind in ("gpt_neox", "bloom") or (kind == "falcon" and not config.multi_query):
        turn = index.view(heads, 3, -1)
        return [turn[:, i].flatten() for i in range(3)]
    size = rows // (heads + 2 * shared) if kind in ("phi3",) else rows // 3
    if kind == "falcon":
        size = rows // (heads + 2)
        return [index[: heads * size], index[heads * size : -size], index[-size:]]
    if kind == "phi3":
        return [
            index[: heads * size],
            index[heads * size : -shared * size],
            index[-shared * size :],
        ]
    return [index[:size], index[size : 2 * size], index[2 * size :]]


def is_tied(model: nn.Module) -> bool:
    """Whether head and token embedding are one tensor."""
    return not any(_role(name) == "lm_head" for name, _ in model.named_parameters())
