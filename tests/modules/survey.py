"""How the causal language models of the installed ``transformers`` start: not a test, but a survey.

    python tests/modules/survey.py [MODEL_TYPE ...]

prints one JSON line for each model type: its findings, which tensors have no values when it is
made on meta, and which loaded ones ``_init_weights`` changes. Each runs in a process of its own,
with a limit of time and memory.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import resource
import sys
import warnings
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nanogpt_cli.modules.starts.fresh import FreshStart, NotLeanError, unguarded
from nanogpt_cli.modules.starts.laws import config_doubled, read_laws
from nanogpt_cli.modules.starts.laws_lint import findings

LAYERS = 3
SECONDS = 60
# Sizes under the names that configurations give them.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
SIZES: dict[str, Any] = {
    **dict.fromkeys(_LAYERS, LAYERS),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "d_ff"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_num_active_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    "vocab_size": 160,
    "encoder_layers": 1,
    "rotary_dim": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "pad_token_id": 0,
    "is_decoder": True,
    "sliding_window": 32,
    "rescale_prenorm_residual": True,
}


def small_config(model_type: str, **more: Any) -> Any:
    """A small configuration of a model type; a configuration of several parts is small in text."""
    kind = transformers.CONFIG_MAPPING[model_type]
    usual = kind()
    sizes = {name: size for name, size in SIZES.items() if vars(usual).get(name) is not None}
    own = vars(usual)  # properties cannot be set
    if "qk_rope_head_dim" in sizes:
        sizes.pop("head_dim", None)  # it follows from the parts of a head
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    if isinstance(types := own.get("layer_types"), list):
        kinds = list(dict.fromkeys(types))
        sizes["layer_types"] = [kinds[i % len(kinds)] for i in range(LAYERS)]
    if isinstance(own.get("mlp_layer_types"), list):
        sizes["mlp_layer_types"] = usual.mlp_layer_types[:1] + usual.mlp_layer_types[-2:]
    return kind(**(sizes | more))


def look(model_type: str) -> dict[str, Any]:
    """Findings on one model type."""
    config = small_config(model_type)
    wide = copy.deepcopy(config)
    has_range = config_doubled(wide)
    library: Any = transformers.AutoModelForCausalLM

    def at(seed: int, config: Any = config) -> Any:
        torch.manual_seed(seed)
        return library.from_config(copy.deepcopy(config), dtype=torch.float32)

    laws = read_laws(at, (lambda seed: at(seed, wide)) if has_range else None)
    lost: list[str] = []
    with torch.device("meta"):
        model = at(0)
    damaged = unguarded(model)
    try:
        FreshStart(model, 0)
    except NotLeanError as error:
        lost = error.left_out
    return {
        "parameters": len(laws),
        "findings": [f"{v.severity} {v.topic} {v.text}" for v in findings(laws)],
        "lost_on_meta": lost,
        "damaged_by_loading": damaged,
    }


def _child(model_type: str, sender: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        sender.send(look(model_type))
    except Exception as error:
        sender.send({"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"})


def main(chosen: list[str]) -> None:
    """Survey the model types given, or one of every class."""
    library: Any = transformers.logging
    library.set_verbosity_error()
    by_class: dict[str, str] = {}
    for model_type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        by_class.setdefault(name, model_type)
    processes = multiprocessing.get_context("fork")
    for model_type in chosen or list(by_class.values()):
        receiver, sender = processes.Pipe(duplex=False)
        process = processes.Process(target=_child, args=(model_type, sender))
        process.start()
        sender.close()
        try:
            found = receiver.recv() if receiver.poll(SECONDS) else {"failed": "no time"}
        except EOFError:
            found = {"failed": "the process ended"}
        process.kill()
        process.join(timeout=SECONDS)
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
        line = {"type": model_type, "class": name} | found
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
