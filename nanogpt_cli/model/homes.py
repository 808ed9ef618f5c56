"""Which other programs' architecture holds a model exactly: its home.

A model with a home can be written in that architecture's files and computed by its runtimes. One
without trains all the same, but is ours only. The multipliers of a scheme play no part, because an
export folds them into the weights; nor do sizes, which every home has.
"""

from __future__ import annotations

from typing import Final, Literal

from nanogpt_cli import recipe
from nanogpt_cli.model.config import GATED, LAYER_NORM_EPS, GPTConfig

Home = Literal["gpt2", "llama", "qwen2", "qwen3"]
TITLES: Final[dict[Home, str]] = {
    "gpt2": "GPT-2", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3",
}  # fmt: skip

# The keys of a model, as they are in a configuration or in a recipe.
Keys = GPTConfig | recipe.Model


def home(config: Keys) -> Home | None:
    """The architecture that holds this combination of parts exactly; ``None`` if none does."""
    return next((name for name in TITLES if not _misfits(config, name)), None)


def describe(config: Keys) -> str:
    """The home's title, or that there is none and why."""
    found = home(config)
    return TITLES[found] if found else f"ours only: {why_homeless(config)}"


def why_homeless(config: Keys) -> str:
    """The keys that no home has, against the home that lacks fewest; "" if there is a home.

    Such as ``activation = "gelu" (Llama has "swiglu")``.
    """
    found = {name: _misfits(config, name) for name in TITLES}
    # Of equals the first, but rotary positions and RMSNorm say more than the order.
    modern = config.norm == "rms" and config.position == "rope"
    nearest = min(found, key=lambda name: (len(found[name]), modern and name == "gpt2"))
    title = TITLES[nearest]
    return ", ".join(f"{key} ({title} has {wanted})" for key, wanted in found[nearest])


def _misfits(config: Keys, name: Home) -> list[tuple[str, str]]:
    """(key and value, what the home has) of every key that a home cannot hold."""
    own = config.n_kv_head or config.n_head
    biased = {"gpt2": (True, False), "qwen2": ("qkv",)}.get(name, (False,))
    found = []
    if config.bias not in biased:
        found.append((f"bias = {_toml(config.bias)}", " or ".join(_toml(b) for b in biased)))
    if name == "gpt2":
        if config.activation in GATED or config.activation == "relu2":
            found.append((f'activation = "{config.activation}"', '"gelu", "relu" or "silu"'))
        if config.hidden not in (0, 4 * config.n_embd):
            found.append((f"hidden = {config.hidden}", f"4 n_embd = {4 * config.n_embd}"))
        if config.norm_eps != LAYER_NORM_EPS:
            found.append((f"norm_eps = {config.norm_eps:g}", f"{LAYER_NORM_EPS:g}"))
        if config.head_dim * config.n_head not in (0, config.n_embd):
            said = f"n_embd / n_head = {config.n_embd / config.n_head:g}"
            found.append((f"head_dim = {config.head_dim}", said))
        if own != config.n_head:
            found.append((f"n_kv_head = {own}", f"n_head = {config.n_head}"))
    elif config.activation != "swiglu":
        found.append((f'activation = "{config.activation}"', '"swiglu"'))
    norm, position = ("layer", "learned") if name == "gpt2" else ("rms", "rope")
    for key, value, wanted in (
        ("norm", config.norm, norm),
        ("position", config.position, position),
        ("qk_norm", config.qk_norm, name == "qwen3"),
    ):
        if value != wanted:
            found.append((f"{key} = {_toml(value)}", _toml(wanted)))
    return found


def _toml(value: bool | str) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()
