"""``config.json`` of a Hugging Face Llama, Qwen2 or Qwen3: writing it, and reading it strictly.

As in ``hf_config.py``: a key that would make transformers compute something else than this
package's GPT is refused by name, a missing one has the value that transformers gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import hf_config
from nanogpt_cli.interop.foreign import config_of
from nanogpt_cli.interop.llama import CONFIG_KEYS, CONVENTIONS, DEFAULTS, Conventions
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.model import homes
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.model.limits import is_number

_ACTIVATIONS: Final = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}
_FULL: Final = "full_attention"
_THETA: Final = 10000.0


def to_json(source: Exportable) -> dict[str, Any]:
    """The content of ``config.json``.

    The base of the rotary angles stands there twice: transformers 5 reads ``rope_parameters``,
    older releases ``rope_theta``.
    """
    config = source.config
    home = homes.home(config)
    assert home in CONVENTIONS, "a model without such a home is refused before"
    own = CONVENTIONS[home]
    sizes = {
        "hidden": config.hidden_size, "n_kv_head": config.kv_heads, "head_dim": config.head_size,
    }  # fmt: skip
    values = {name: sizes.get(key, getattr(config, key)) for key, name in CONFIG_KEYS.items()}
    return {
        "architectures": [own.model_class], "model_type": home, "hidden_act": "silu", **values,
        **own.fixed, "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        **hf_config.common(source), "pad_token_id": None,
    }  # fmt: skip


def read(path: Path, values: Mapping[str, Any], notes: list[str]) -> GPTConfig:
    """The configuration in a ``config.json`` whose ``model_type`` is one of the three.

    Args:
        path: the file, for messages.
        values: its content.
        notes: sentences for the user are added here.

    Raises:
        UserError: it describes a model that this package does not compute; the key is named.
    """
    own = CONVENTIONS[hf_config.model_type(path, values)]
    _refuse_variants(path, values, own)
    values = {**DEFAULTS, **own.defaults, **values}
    activation = values["hidden_act"]
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise UserError(
            f"{path}: hidden_act {activation!r:.60} is not computed here",
            f"models with one of these can be imported: {', '.join(_ACTIVATIONS)}",
        )
    if "auto_map" in values:
        notes.append(f"{path.name} names code of its own (auto_map), which is not run")
    found = {key: values[name] for key, name in CONFIG_KEYS.items() if name in values}
    if found["n_kv_head"] is None:
        found["n_kv_head"] = found.get("n_head")
    if found.get("head_dim", 0) is None:
        del found["head_dim"]  # the usual one
    found["rope_theta"] = _theta(path, values)
    for key, name in CONFIG_KEYS.items():
        if key == "head_dim" and key not in found:
            continue
        if not found.get(key, 0) and key not in ("dropout", "tied"):
            said = f"is {found[key]!r:.40}" if key in found else "is missing"
            raise UserError(f"{path}: {name} {said}", "transformers' save_pretrained() writes it")
    return config_of(path, {
        **found, "activation": _ACTIVATIONS[activation], "norm": "rms", "position": "rope",
        "bias": own.bias, "qk_norm": own.qk_norm,
    }, CONFIG_KEYS)  # fmt: skip


def _refuse_variants(path: Path, values: Mapping[str, Any], own: Conventions) -> None:
    """Refuse keys that change the output in a way that is not computed here."""
    for key, value in own.fixed.items():
        if values.get(key, value) is not value:
            raise UserError(
                f"{path}: {key} = {values[key]!r:.40} is not computed here",
                "transformers runs this model",
            )
    kinds = values.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(k != _FULL for k in kinds)):
        other = next((k for k in kinds if k != _FULL), kinds) if isinstance(kinds, list) else kinds
        raise UserError(
            f"{path}: layer_types has {other!r:.60}, which is not computed here",
            f"every layer must be {_FULL!r}; transformers runs this model",
        )
    hf_config.refuse_filled(path, values)


def _theta(path: Path, values: Mapping[str, Any]) -> Any:
    """The base of the rotary angles, from ``rope_parameters`` or the older ``rope_theta``."""
    found = {"rope_theta": values["rope_theta"]} if "rope_theta" in values else {}
    for key in ("rope_parameters", "rope_scaling"):
        table = values.get(key) or {}
        if not isinstance(table, dict):
            raise UserError(f"{path}: {key} is {table!r:.60}, not a table")
        for name, value in table.items():
            if name == "rope_theta":
                found[f"{key}.{name}"] = value
            elif (name, value) not in (("rope_type", "default"), ("type", "default")):
                raise UserError(
                    f"{path}: {key}.{name} = {value!r:.60} is not computed here",
                    "only rotary positions without scaling are; transformers runs this model",
                )
    names = list(found)
    for name in names[1:]:
        if found[name] != found[names[0]]:
            raise UserError(
                f"{path}: {name} = {found[name]!r:.40} contradicts {names[0]} = "
                f"{found[names[0]]!r:.40}",
                "they mean the same: remove the wrong one from the file",
            )
    theta = found[names[0]] if names else _THETA
    return float(theta) if is_number(theta) else theta
