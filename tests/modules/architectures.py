"""Small random models of `transformers` with the names of their parts, written down by hand.

An oracle for what is found without names: plain hooks on the modules named here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

VOCABULARY, WIDTH, LAYERS = 97, 48, 3
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Names:
    """Where a family keeps its parts, relative to a block.

    Attributes:
        config: keys of its configuration.
        blocks: path of the list of blocks.
        attn, mlp: modules whose results are added to the stream.
        act: module whose argument are the MLP's pre-activations.
        down: module whose argument are the MLP's hidden units; empty for experts.
        qkv, out, fc, proj: matrices; several for one class are joined with spaces.
        factor: what the branches are multiplied with.
    """

    config: dict[str, Any]
    blocks: str = "model.layers"
    attn: str = "self_attn"
    mlp: str = "mlp"
    act: str = "mlp.act_fn"
    down: str = "mlp.down_proj"
    qkv: str = "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight"
    out: str = "self_attn.o_proj.weight"
    fc: str = "mlp.gate_proj.weight mlp.up_proj.weight"
    proj: str = "mlp.down_proj.weight"
    factor: float = 1.0


def _old(attn: str, act: str, fc: str, proj: str, qkv: str, out: str, **names: Any) -> Any:
    """Names of a family whose MLP has one matrix before the activation."""
    return {
        "attn": attn, "act": f"mlp.{act}", "down": f"mlp.{proj}", "fc": f"mlp.{fc}.weight",
        "proj": f"mlp.{proj}.weight", "out": f"{attn}.{out}.weight",
        "qkv": " ".join(f"{attn}.{name}.weight" for name in qkv.split()), **names,
    }  # fmt: skip


_SANDWICH: Any = {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
_SEPARATE = "q_proj k_proj v_proj"
FAMILIES: dict[str, Names] = {
    "gpt2": Names(
        _GPT2, "transformer.h", **_old("attn", "act", "c_fc", "c_proj", "c_attn", "c_proj")
    ),
    "gpt_bigcode": Names(
        _GPT2, "transformer.h", **_old("attn", "act", "c_fc", "c_proj", "c_attn", "c_proj")
    ),
    "gpt_neo": Names(
        {
            "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": 4,
            "attention_types": [[["global"], LAYERS]], "max_position_embeddings": 64,
            "bos_token_id": 1, "eos_token_id": 2,
        },
        "transformer.h",
        **_old("attn.attention", "act", "c_fc", "c_proj", _SEPARATE, "out_proj"),
    ),
    "gptj": Names(
        {**_GPT2, "rotary_dim": 4},
        "transformer.h",
        **_old("attn", "act", "fc_in", "fc_out", _SEPARATE, "out_proj"),
    ),
    "codegen": Names(
        {**_GPT2, "rotary_dim": 4},
        "transformer.h",
        **_old("attn", "act", "fc_in", "fc_out", "qkv_proj", "out_proj"),
    ),
    "gpt_neox": Names(
        _SIZES,
        "gpt_neox.layers",
        **_old("attention", "act", "dense_h_to_4h", "dense_4h_to_h", "query_key_value", "dense"),
    ),
    "bloom": Names(
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 4},
        "transformer.h",
        **{
            **_old("self_attention", "gelu_impl", "dense_h_to_4h", "dense_4h_to_h",
                   "query_key_value", "dense"),
            "attn": "self_attention.dense", "mlp": "mlp.dense_4h_to_h",
        },
    ),
    "falcon": Names(
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
         "num_attention_heads": 4},
        "transformer.h",
        **_old("self_attention", "act", "dense_h_to_4h", "dense_4h_to_h", "query_key_value",
               "dense"),
    ),
    "opt": Names(
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
         "num_attention_heads": 4, "ffn_dim": 80, "max_position_embeddings": 64,
         "word_embed_proj_dim": WIDTH},
        "model.decoder.layers",
        act="activation_fn", mlp="fc2", down="fc2", out="self_attn.out_proj.weight",
        fc="fc1.weight", proj="fc2.weight",
    ),
    "mpt": Names(
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": 4,
         "max_seq_len": 64},
        "transformer.blocks",
        attn="attn", act="ffn.act", mlp="ffn.down_proj", down="ffn.down_proj",
        qkv="attn.Wqkv.weight", out="attn.out_proj.weight", fc="ffn.up_proj.weight",
        proj="ffn.down_proj.weight",
    ),
    "llama": Names(_GROUPED),
    "mistral": Names(_GROUPED),
    "qwen2": Names(_GROUPED),
    "qwen3": Names({**_GROUPED, "head_dim": 16}),
    "gemma": Names({**_GROUPED, "head_dim": 16}),
    "gemma2": Names({**_GROUPED, "head_dim": 16}, **_SANDWICH),
    "gemma3_text": Names({**_GROUPED, "head_dim": 16}, **_SANDWICH),
    "phi": Names(_SIZES, **_old("self_attn", "activation_fn", "fc1", "fc2", _SEPARATE, "dense")),
    "phi3": Names(
        _GROUPED, act="mlp.activation_fn", qkv="self_attn.qkv_proj.weight",
        fc="mlp.gate_up_proj.weight",
    ),
    "stablelm": Names({**_GROUPED, "partial_rotary_factor": 0.5}),
    "olmo": Names(_GROUPED),
    "olmo2": Names(_GROUPED, **_SANDWICH),
    "cohere": Names(_GROUPED),
    "granite": Names(
        {**_GROUPED, "embedding_multiplier": 3.0, "residual_multiplier": 0.3,
         "logits_scaling": 2.0, "attention_multiplier": 0.2},
        factor=0.3,
    ),
    "starcoder2": Names(
        _GROUPED, act="mlp.act", down="mlp.c_proj", fc="mlp.c_fc.weight", proj="mlp.c_proj.weight"
    ),
    "smollm3": Names(_GROUPED),
    "glm4": Names(
        {**_GROUPED, "head_dim": 16},
        attn="post_self_attn_layernorm", mlp="post_mlp_layernorm", act="mlp.activation_fn",
        fc="mlp.gate_up_proj.weight",
    ),
    "mixtral": Names(
        {**_GROUPED, "num_local_experts": 4}, act="mlp.experts.act_fn", down="",
        fc="mlp.experts.gate_up_proj", proj="mlp.experts.down_proj",
    ),
    "qwen2_moe": Names(
        {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "shared_expert_intermediate_size": 40},
        act="", down="",
        fc="mlp.experts.gate_up_proj mlp.shared_expert.gate_proj.weight "
           "mlp.shared_expert.up_proj.weight",
        proj="mlp.experts.down_proj mlp.shared_expert.down_proj.weight",
    ),
}  # fmt: skip


def model(family: str, device: str = "cpu", attention: str = "eager") -> nn.Module:
    """A model of a family with random values in every parameter, biases and gains included."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family].config)
    torch.manual_seed(0)
    with torch.device(device):
        built: nn.Module = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation=attention
        )
    built.eval()
    if device == "cpu":
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return built


def tokens(batch: int = 2, length: int = 12) -> tuple[Tensor, Tensor]:
    """Random token ids and next ids, (batch, length) each."""
    generator = torch.Generator().manual_seed(2)
    both = torch.randint(0, VOCABULARY, (batch, length + 1), generator=generator)
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()
