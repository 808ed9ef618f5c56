"""Which models the streamed measurement computes: those with GPT-2's parts, and no others."""

from __future__ import annotations

from nanogpt_cli.errors import UserError
from nanogpt_cli.model.config import LAYER_NORM_EPS, GPTConfig


def beyond(config: GPTConfig) -> str:
    """The first key, with its value, that the streamed measurement lacks; "" if it has them all.

    Any plain activation and SwiGLU in GPT-2's place, and any hidden size, are known.
    """
    found = {
        f'norm = "{config.norm}"': config.norm != "layer",
        f"norm_eps = {config.norm_eps:g}": config.norm_eps != LAYER_NORM_EPS,
        f'position = "{config.position}"': config.position != "learned",
        "qk_norm = true": config.qk_norm,
        f"n_kv_head = {config.n_kv_head}": config.kv_heads != config.n_head,
        f"head_dim = {config.head_dim}": config.head_dim != 0,
        f'bias = "{config.bias}"': config.bias == "qkv",
        f'activation = "{config.activation}"': config.activation == "geglu",
    }
    return next((key for key, differs in found.items() if differs), "")


def check(config: GPTConfig) -> None:
    """Refuse to stream a model with other parts, whose numbers would be those of another model.

    Raises:
        UserError: it has another part; the first such key is named.
    """
    if key := beyond(config):
        raise UserError(
            f"only models with GPT-2's parts are measured here, and this one has model.{key}",
            "theory alone compares it: leave out --measure",
        )
