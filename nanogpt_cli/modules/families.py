"""Where the known decoders of ``transformers`` and nanoGPT keep their parts, as data.

A family is known by ``config.model_type``. What a configuration sets (sizes, multipliers, rotary
angles) is read by ``reader.py``; sizes come from the parameters themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

from nanogpt_cli.init.blueprint import Placement
from nanogpt_cli.model.config import GPTConfig

Settings = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """One naming of a decoder's parts.

    Attributes:
        names: paths, inside a block, of the modules by role. A fused projection stands under
            ``qkv`` or, for gate and value of a gated MLP in this order, ``gate_fc``.
        body: path of the module that holds table, blocks and last norm.
        blocks: name of the list of blocks in it.
        wte, wpe, final: names of the token table, position table and last norm in it.
        norm: kind of its norms.
        placement: where they stand.
        fused: order of the rows of ``qkv``: all of q, then k, then v; or by head.
        transposed: whether matrices are stored as (in, out).
        offset: whether the norms' gain is 1 + weight.
        interleaved: whether neighbouring channels are rotated together, not those half a head
            apart.
        settings: fields of ``Blueprint`` and of ``reader.Reader`` that follow from the
            configuration.
    """

    names: Mapping[str, str]
    body: str = "model"
    blocks: str = "layers"
    wte: str = "embed_tokens"
    wpe: str = ""
    final: str = "norm"
    norm: Literal["layer", "rms"] = "rms"
    placement: Placement = "pre"
    fused: Literal["stacked", "by_head"] = "stacked"
    transposed: bool = False
    offset: bool = False
    interleaved: bool = False
    settings: Settings = field(default=lambda _config: {})


_ATTENTION = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "attn_proj": "self_attn.o_proj",
}
_QK_NORM = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_UP_DOWN = {"fc": "mlp.up_proj", "mlp_proj": "mlp.down_proj"}
_GATED = {"gate": "mlp.gate_proj", **_UP_DOWN}
_GATE_UP = {"gate_fc": "mlp.gate_up_proj", "mlp_proj": "mlp.down_proj"}
_TWO_FC = {"fc": "mlp.fc1", "mlp_proj": "mlp.fc2"}
_EXPERTS = {
    "router": "mlp.gate",
    "gate_fc": "mlp.experts.gate_up_proj",
    "mlp_proj": "mlp.experts.down_proj",
}
_NORMS = {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm"}
_ONE_NORM = {"norm_1": "input_layernorm", "norm_2": "input_layernorm"}
_BEHIND = {"after_1": "post_attention_layernorm", "after_2": "post_feedforward_layernorm"}
_PERI = {"norm_1": "input_layernorm", "norm_2": "pre_feedforward_layernorm", **_BEHIND}
_GPT2 = {
    "qkv": "attn.c_attn",
    "attn_proj": "attn.c_proj",
    "fc": "mlp.c_fc",
    "mlp_proj": "mlp.c_proj",
    "norm_1": "ln_1",
    "norm_2": "ln_2",
}
_LLAMA = {**_ATTENTION, **_GATED, **_NORMS}


def _root_width(config: Any) -> dict[str, Any]:
    return {"embedding": float(config.hidden_size) ** 0.5}


def _gemma2(config: Any) -> dict[str, Any]:
    return {
        **_root_width(config),
        "attention_scale": config.query_pre_attn_scalar**-0.5,
        "score_cap": config.attn_logit_softcapping or 0.0,
        "logit_cap": config.final_logit_softcapping or 0.0,
    }


def _granite(config: Any) -> dict[str, Any]:
    return {
        "embedding": config.embedding_multiplier,
        "residual": config.residual_multiplier,
        "output": 1 / config.logits_scaling,
        "attention_scale": config.attention_multiplier,
    }


def _experts(config: Any) -> dict[str, Any]:
    return {
        "active": config.num_experts_per_tok,
        "shares_sum": bool(getattr(config, "norm_topk_prob", True)),
    }


def _gpt2(config: Any) -> dict[str, Any]:
    by_layer = getattr(config, "scale_attn_by_inverse_layer_idx", False)
    return {
        "scores_by_layer": by_layer,
        **({} if config.scale_attn_weights else {"attention_scale": 1.0}),
    }


def _gptj(config: Any) -> dict[str, Any]:
    return {"parallel": True, "rotary_channels": config.rotary_dim}


def _opt(config: Any) -> dict[str, Any]:
    before = config.do_layer_norm_before
    return {"first_position": 2, **({} if before else {"placement": "post"})}


def _cohere2(config: Any) -> dict[str, Any]:
    turned = [kind == "sliding_attention" for kind in config.layer_types]
    return {"parallel": True, "output": config.logit_scale, "turned": turned}


FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "ministral", "qwen2", "seed_oss"), Family(_LLAMA)),
    "helium": Family(_LLAMA, interleaved=True),
    "qwen3": Family(_LLAMA | _QK_NORM),
    "arcee": Family(_ATTENTION | _UP_DOWN | _NORMS),
    "smollm3": Family(_LLAMA, settings=lambda c: {"turned": [bool(x) for x in c.no_rope_layers]}),
    "phi3": Family(
        {
            "qkv": "self_attn.qkv_proj",
            "attn_proj": "self_attn.o_proj",
            **_GATE_UP,
            **_NORMS,
        }
    ),
    "gemma": Family(_LLAMA, offset=True, settings=_root_width),
    "gemma2": Family(_ATTENTION | _GATED | _PERI, placement="peri", offset=True, settings=_gemma2),
    "gemma3_text": Family(
        _ATTENTION | _GATED | _PERI | _QK_NORM, placement="peri", offset=True, settings=_gemma2
    ),
    "glm4": Family(
        {
            **_ATTENTION,
            **_GATE_UP,
            **_NORMS,
            "after_1": "post_self_attn_layernorm",
            "after_2": "post_mlp_layernorm",
        },
        placement="peri",
        interleaved=True,
    ),
    "olmo": Family(_LLAMA, norm="layer"),
    "olmo2": Family(_ATTENTION | _GATED | _BEHIND | _QK_NORM, placement="branch"),
    "granite": Family(_LLAMA, settings=_granite),
    "mixtral": Family(_ATTENTION | _EXPERTS | _NORMS, settings=_experts),
    "qwen3_moe": Family(_ATTENTION | _EXPERTS | _NORMS | _QK_NORM, settings=_experts),
    "olmoe": Family(_ATTENTION | _EXPERTS | _NORMS | _QK_NORM, settings=_experts),
    "nanochat": Family(
        _ATTENTION | _TWO_FC | _NORMS | _QK_NORM,
        settings=lambda c: {
            "embedding_norm": True,
            "logit_cap": c.final_logit_softcapping or 0.0,
            "backwards": True,
        },
    ),
    "cohere": Family(
        _ATTENTION | _GATED | _ONE_NORM,
        norm="layer",
        interleaved=True,
        settings=lambda c: {"parallel": True, "output": c.logit_scale},
    ),
    "cohere2": Family(
        _ATTENTION | _GATED | _ONE_NORM, norm="layer", interleaved=True, settings=_cohere2
    ),
    "stablelm": Family(
        _LLAMA, norm="layer", settings=lambda c: {"parallel": c.use_parallel_residual}
    ),
    "starcoder2": Family(
        {**_ATTENTION, "fc": "mlp.c_fc", "mlp_proj": "mlp.c_proj", **_NORMS}, norm="layer"
    ),
    "nemotron": Family(_ATTENTION | _UP_DOWN | _NORMS, norm="layer", offset=True),
    "phi": Family(
        {**_ATTENTION, "attn_proj": "self_attn.dense", **_TWO_FC, **_ONE_NORM},
        final="final_layernorm",
        norm="layer",
        settings=lambda _c: {"parallel": True},
    ),
    "gpt_neox": Family(
        {
            "qkv": "attention.query_key_value",
            "attn_proj": "attention.dense",
            "fc": "mlp.dense_h_to_4h",
            "mlp_proj": "mlp.dense_4h_to_h",
            **_NORMS,
        },
        body="gpt_neox",
        wte="embed_in",
        final="final_layer_norm",
        norm="layer",
        fused="by_head",
        settings=lambda c: {"parallel": c.use_parallel_residual},
    ),
    "gptj": Family(
        {
            "q": "attn.q_proj",
            "k": "attn.k_proj",
            "v": "attn.v_proj",
            "attn_proj": "attn.out_proj",
            "fc": "mlp.fc_in",
            "mlp_proj": "mlp.fc_out",
            "norm_1": "ln_1",
            "norm_2": "ln_1",
        },
        body="transformer",
        blocks="h",
        wte="wte",
        final="ln_f",
        norm="layer",
        interleaved=True,
        settings=_gptj,
    ),
    "opt": Family(
        {
            **_ATTENTION,
            "attn_proj": "self_attn.out_proj",
            "fc": "fc1",
            "mlp_proj": "fc2",
            "norm_1": "self_attn_layer_norm",
            "norm_2": "final_layer_norm",
        },
        body="model.decoder",
        wpe="embed_positions",
        final="final_layer_norm",
        norm="layer",
        settings=_opt,
    ),
    "gpt2": Family(
        _GPT2,
        body="transformer",
        blocks="h",
        wte="wte",
        wpe="wpe",
        final="ln_f",
        norm="layer",
        transposed=True,
        settings=_gpt2,
    ),
}

# nanoGPT and its relatives, known by their attributes: matrices are stored as (out, in).
NANOGPT = Family(
    _GPT2, body="transformer", blocks="h", wte="wte", wpe="wpe", final="ln_f", norm="layer"
)  # fmt: skip

_GATES = {"swiglu": "silu", "geglu": "gelu"}


def own(config: GPTConfig) -> tuple[Family, dict[str, Any], Any]:
    """Family and settings of our GPT, and its configuration in the words of ``transformers``."""
    factors = config.multipliers
    settings = {
        "embedding": factors.embedding,
        "residual": factors.residual,
        "output": factors.output,
        "attention_scale": config.attention_scale,
    }
    rope = {"rope_theta": config.rope_theta} if config.position == "rope" else None
    words = SimpleNamespace(
        num_attention_heads=config.n_head,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_size,
        activation=_GATES.get(config.activation, config.activation),
        rope_parameters=rope,
    )
    if config.naming == "gpt2":
        return NANOGPT, settings, words
    names = {**_ATTENTION, **(_GATED if config.gated else _UP_DOWN), **_NORMS}
    family = Family(
        names | (_QK_NORM if config.qk_norm else {}),
        wpe="embed_positions" if config.position == "learned" else "",
        norm="rms" if config.norm == "rms" else "layer",
    )
    return family, settings, words


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
}
