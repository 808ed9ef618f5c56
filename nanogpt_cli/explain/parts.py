"""``nanogpt explain modern``: today's parts, one at a time, before the first step."""

from __future__ import annotations

import math
from typing import Any, Final

from nanogpt_cli.explain.concept import Concept, Found, Value, Words
from nanogpt_cli.explain.page import Action
from nanogpt_cli.explain.values import Model

_BASE: Final[dict[str, Any]] = {
    "norm": "layer", "position": "learned", "qk_norm": False, "activation": "gelu",
    "n_kv_head": 0, "hidden": 0,
}  # fmt: skip
PARTS: Final = ("gpt2", "rms", "rope", "qk", "gqa", "swiglu", "all")


def changes(model: Model) -> dict[str, dict[str, Any]]:
    """What each part changes of a GPT-2 of the model's shape; a quarter of the key heads fits."""
    heads = model.config.n_head
    parts: dict[str, dict[str, Any]] = {
        "gpt2": {}, "rms": {"norm": "rms"}, "rope": {"position": "rope"}, "qk": {"qk_norm": True},
        "gqa": {"n_kv_head": heads // math.gcd(heads, 4)}, "swiglu": {"activation": "swiglu"},
    }  # fmt: skip
    together = {key: value for part in parts.values() for key, value in part.items()}
    return {name: _BASE | part for name, part in (parts | {"all": together}).items()}


def _compute(model: Model) -> Found:
    from nanogpt_cli.model.accounting import account

    if model.config.head_size % 2:  # rotations turn pairs of channels
        model = model.changed(head_dim=model.config.head_size + 1)
    values: dict[str, Value] = {"heads": model.config.n_head, "head": model.config.head_size}
    for name, part in changes(model).items():
        one = model.changed(**part)
        found, c = one.start(backward=True), one.config
        values |= {
            f"{name}_size": account(c).parameters / 1e6, f"{name}_kv": c.kv_heads,
            f"{name}_cache": 2 * 4 * c.n_layer * c.kv_size * c.block_size / 2**20,
            f"{name}_first": found.stream_rms[0], f"{name}_growth": found.growth,
            f"{name}_scores": max(found.score_std), f"{name}_entropy": min(found.attn_entropy),
            f"{name}_mlp": found.mlp_rms[0], f"{name}_attn": found.attn_rms[0],
            f"{name}_gradient": found.gradient_ratio,
        }  # fmt: skip
    units = {f"{name}_cache": "MiB" for name in PARTS} | {
        f"{name}_size": "million parameters" for name in PARTS
    }
    return Found(values, units=units)


_LABELS: Final = {"gpt2": "GPT-2", "rms": "RMSNorm", "rope": "RoPE", "qk": "QK-norm",
                  "gqa": "GQA", "swiglu": "SwiGLU", "all": "all five"}  # fmt: skip
_WORDS: Final = Words(
    "What do today's parts change before the first step?",
    (
        "GPT-2 with one part replaced at a time, as Qwen3 and Llama have them, by theory. “MLP”: "
        "RMS of the first MLP's contribution; “cache”: keys and values of {T} tokens in float32.",
    ),
    (Action("Train with all of them:", "nanogpt train modern"),
     Action("What was measured, part by part:", "nanogpt docs experiments")),
    table=(
        ("", "parameters", "cache", "stream", "grows", "score std", "entropy", "MLP", "gradient"),
        *(
            (label, f"{{{n}_size:.1f}} M", f"{{{n}_cache:.1f}} MiB", f"{{{n}_first:.4f}}",
             f"×{{{n}_growth:.1f}}", f"{{{n}_scores:.2f}}", f"{{{n}_entropy:.3f}}",
             f"{{{n}_mlp:.4f}}", f"×{{{n}_gradient:.1f}}")
            for n, label in _LABELS.items()
        ),
    ),
    after=(
        "RMSNorm leaves out the mean, which random weights keep near zero: nothing changes at the "
        "start, and there is less to compute. RoPE rotates queries and keys by their positions in "
        "place of a table; the stream starts smaller, {rope_first:.3f}, made of tokens alone.",
        "QK-norm fixes the size of queries and keys, so scores have std {qk_scores:.2f} in place "
        "of {gpt2_scores:.2f} at any width, and cannot grow without limit in training. GQA lets "
        "{heads} query heads share {gqa_kv} heads of keys and values: {gqa_cache:.1f} MiB of cache "
        "instead of {gpt2_cache:.1f}; the signal keeps its size.",
        "SwiGLU multiplies two projections: at this std its output is a product of two small "
        "numbers, {swiglu_mlp:.4f} in place of {gpt2_mlp:.4f}, and the stream grows less.",
    ),
)  # fmt: skip

CONCEPTS: Final = {"modern": Concept({"en": _WORDS}, _compute)}
