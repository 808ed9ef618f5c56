"""The homes llama, qwen2 and qwen3 in other programs' files: what they differ in, as data.

Sources: transformers' ``models/llama``, ``qwen2`` and ``qwen3`` (configuration and modelling);
llama.cpp's ``src/models`` and ``convert_hf_to_gguf.py``. Their tensors have the names of
``model/gpt.py`` in a Hugging Face folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from nanogpt_cli.model.gpt import GPTConfig

AUTO_TOKENIZER: Final = "AutoTokenizer"


@dataclass(frozen=True)
class Conventions:
    """How files say that a model is of one home.

    Attributes:
        model_class: transformers' class.
        bias, qk_norm: the keys of ``GPTConfig`` that the home fixes.
        fixed: keys of ``config.json`` that change what transformers computes, with the value that
            is computed here; also transformers' value where a file leaves them out.
        defaults: transformers' values of other keys where a file leaves them out, beside
            ``DEFAULTS``.
        interleaved: whether llama.cpp turns channels 2i and 2i + 1 of a head, as in Meta's own
            files, and not i and i + D/2.
        tokenizer_class: transformers' class that reads ``tokenizer.json`` as it is. For a model of
            type qwen2, ``AutoTokenizer`` of transformers 5 puts Qwen2's own rules for splitting
            words in the place of the file's.
    """

    model_class: str
    bias: bool | Literal["qkv"]
    qk_norm: bool
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    interleaved: bool = False
    tokenizer_class: str = AUTO_TOKENIZER


# Transformers' values of keys that a file may leave out.
DEFAULTS: Final = {
    "num_key_value_heads": None, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0, "tie_word_embeddings": False,
}  # fmt: skip
_SLIDING: Final = {"use_sliding_window": False}
CONVENTIONS: Final = {
    "llama": Conventions(
        "LlamaForCausalLM", False, False, {"attention_bias": False, "mlp_bias": False},
        interleaved=True,
    ),
    "qwen2": Conventions(
        "Qwen2ForCausalLM", "qkv", False, _SLIDING, {"num_key_value_heads": 32},
        tokenizer_class="PreTrainedTokenizerFast",
    ),
    "qwen3": Conventions(
        "Qwen3ForCausalLM", False, True, {"attention_bias": False, **_SLIDING},
        {"num_key_value_heads": 32, "head_dim": 128},
    ),
}  # fmt: skip

# Key of GPTConfig -> key of config.json.
CONFIG_KEYS: Final = {
    "vocab_size": "vocab_size", "n_embd": "hidden_size", "hidden": "intermediate_size",
    "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads", "head_dim": "head_dim",
    "block_size": "max_position_embeddings",
    "norm_eps": "rms_norm_eps", "rope_theta": "rope_theta", "dropout": "attention_dropout",
    "tied": "tie_word_embeddings",
}  # fmt: skip

# Module in model/gpt.py -> its name in a GGUF file; those of a block stand behind its number.
GGUF_NAMES: Final = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip
GGUF_BLOCK_NAMES: Final = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def of(config: GPTConfig) -> Conventions:
    """The conventions of a model's home, which must be one of the three."""
    return next(
        found for found in CONVENTIONS.values()
        if (found.bias, found.qk_norm) == (config.bias, config.qk_norm)
    )  # fmt: skip


def tokenizer_class(config: GPTConfig) -> str:
    """The class of transformers to read the tokenizer of a model's folder with."""
    return AUTO_TOKENIZER if config.naming == "gpt2" else of(config).tokenizer_class
