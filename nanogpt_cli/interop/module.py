"""Converting a foreign ``nn.Module`` with GPT-2's parameter names to this package's GPT.

Names and shapes do not say what a module computes: another activation, attention without its scale
or a missing residual connection leave no trace in them. So the module's own forward is run once,
and a model whose logits the GPT does not reproduce is refused.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop.foreign import native_name
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.model.parameters import shapes

_BLOCK = re.compile(r"^transformer\.h\.(\d+)\.")
_HEAD: Final = "lm_head.weight"
_POSITIONS: Final = 16
# Of the largest logit. Two ways to compute a GPT-2 in float32 differ by 1e-6 of it; at GPT-2's own
# initialisation, attention scaled by layer changes it by 6e-3, an epsilon of 1e-6 by 2e-3.
_TOLERANCE: Final = 1e-4
_ACTIVATIONS: Final = {
    "gelu": ("GELU", "GELUActivation"),
    "gelu_tanh": ("NewGELU", "NewGELUActivation", "FastGELUActivation", "AccurateGELUActivation",
                  "GELUTanh"),
    "relu": ("ReLU",), "relu2": ("ReLUSquaredActivation",), "silu": ("SiLU", "SiLUActivation"),
}  # fmt: skip


def adopt(module: nn.Module, label: str) -> GPT:
    """A GPT with the values of ``module``'s parameters, recognised by GPT-2's names and shapes.

    Names may lack ``transformer.`` and begin with the prefixes of wrappers, as in files. A module
    without head, such as transformers' ``GPT2Model``, gets the embedding as its head. Matrices may
    be stored as (out, in) or, as in Hugging Face's models, as (in, out). The module's forward takes
    token ids (B, T) and returns logits (B, T, V) or (B, 1, V), alone, first in a tuple, or as
    ``logits`` of an object; without head also the output of the last LayerNorm (B, T, C), alone,
    first in a tuple, or as ``last_hidden_state``.

    Raises:
        UserError: a name or shape is not that of a GPT-2, the message gives the first one; or the
            module computes something else.
    """
    found = {
        native_name(name): parameter.detach()
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }
    config = _own(module) or _config(module, found, label)
    missing = [name for name in shapes(config) if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{label} is not a GPT-2: it has no {missing[0]}{more}")
    if empty := [name for name, value in found.items() if value.is_meta]:
        raise UserError(f"{label}: {empty[0]} is on the device meta and has no values")
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.tie()
    turned = {native_name(name) for name in _transposed_squares(module)}
    with torch.no_grad():
        for name, shape in shapes(config).items():
            value = found[name]
            if name in turned or (value.shape != shape and value.T.shape == shape):
                value = value.T
            if tuple(value.shape) != shape:
                raise UserError(f"{label}: {name} is {tuple(value.shape)}, expected {shape}")
            model.get_parameter(name).copy_(value)
    model = model.eval().requires_grad_(False)
    _compare(module, model, label, headless=_HEAD not in found)
    return model


def _own(module: nn.Module) -> GPTConfig | None:
    """The configuration of this package's own model, wrapped or not."""
    return next((part.config for part in module.modules() if isinstance(part, GPT)), None)


def _transposed_squares(module: nn.Module) -> list[str]:
    """Square matrices of Hugging Face's Conv1D, which are transposed despite their shape."""
    owners = ((name, part) for name, part in module.named_modules() if name.endswith("attn.c_proj"))
    return [f"{name}.weight" for name, part in owners if type(part).__name__ == "Conv1D"]


def _config(module: nn.Module, found: Mapping[str, Tensor], label: str) -> GPTConfig:
    wte, wpe = found.get("transformer.wte.weight"), found.get("transformer.wpe.weight")
    layers = {int(m[1]) for m in map(_BLOCK.match, found) if m}
    if wte is None or wpe is None or not layers:
        names = ", ".join(list(found)[:3]) or "none"
        raise UserError(
            f"{label} is not a GPT-2: no transformer.wte, transformer.wpe and transformer.h.N",
            f"its parameters begin with {names}",
        )
    if _HEAD not in found and _says_untied(module):
        raise UserError(
            f"{label}: tie_word_embeddings is false in its configuration, but it has no {_HEAD}",
            "pass the model with its head, such as GPT2LMHeadModel",
        )
    d = wte.shape[1]
    head = found.get(_HEAD, wte)
    return GPTConfig(
        n_layer=max(layers) + 1,
        n_head=_heads(module, d),
        n_embd=d,
        block_size=wpe.shape[0],
        vocab_size=wte.shape[0],
        dropout=0.0,
        bias="transformer.h.0.attn.c_attn.bias" in found,
        activation=_activation(module),
        tied=head is wte or head.data_ptr() == wte.data_ptr(),
    )


def _says_untied(module: nn.Module) -> bool:
    configs = (getattr(part, "config", None) for part in module.modules())
    return any(getattr(config, "tie_word_embeddings", True) is False for config in configs)


def _heads(module: nn.Module, d: int) -> int:
    """Read from a configuration or an attention module; else the usual 64 channels a head."""
    holders = (x for part in module.modules() for x in (getattr(part, "config", None), part))
    for holder in holders:
        for name in ("n_head", "num_heads", "n_heads"):
            heads = getattr(holder, name, None)
            if isinstance(heads, int) and heads > 0 and d % heads == 0:
                return heads
    return d // 64 if d % 64 == 0 else math.gcd(d, 8)


def _activation(module: nn.Module) -> str:
    """Read from the MLP's activation module; ``_compare`` finds one that is not there."""
    for child in module.modules():
        for name, kinds in _ACTIVATIONS.items():
            if type(child).__name__ in kinds:
                return "gelu_tanh" if getattr(child, "approximate", "") == "tanh" else name
    return "gelu"


def _compare(module: nn.Module, model: GPT, label: str, *, headless: bool) -> None:
    """Refuse a module whose logits are not those of ``model``, which has its weights."""
    config = model.config
    ids = torch.arange(min(_POSITIONS, config.block_size))[None] * 7919 % config.vocab_size
    theirs, hidden = _their_output(module, ids, label)
    with torch.no_grad():
        ours = model(ids)[0]
        normed = theirs.dim() == 3 and theirs.shape[2] == config.n_embd
        if headless and normed and (hidden or config.n_embd != config.vocab_size):
            theirs = model.lm_head(theirs)
    if theirs.dim() != 3 or theirs.shape[2] < config.vocab_size:
        raise UserError(f"{label}: its forward returns {tuple(theirs.shape)}, no logits (B, T, V)")
    ours = ours[:, -theirs.shape[1] :]
    theirs = theirs[:, -ours.shape[1] :, : config.vocab_size]
    unlike = ours.nan_to_num() - theirs.nan_to_num()  # weights that are NaN are judged elsewhere
    largest = float(ours.nan_to_num().abs().max())
    if float(unlike.abs().max()) > _TOLERANCE * max(1.0, largest):
        raise UserError(
            f"{label} is another model: with its weights, a GPT-2 of {config.n_head} heads and "
            f"activation {config.activation} has other logits, by up to "
            f"{float(unlike.abs().max()):.2g} (the largest is {largest:.2g})",
            "what it computes between its weights is not GPT-2; nothing was measured",
        )


def _their_output(module: nn.Module, ids: Tensor, label: str) -> tuple[Tensor, bool]:
    """What the forward returns, float32 on the CPU, and whether it is called a hidden state."""
    first = next(module.parameters())
    training = module.training
    try:
        if first.dtype != torch.float32:  # rounding would hide what differs
            module = copy.deepcopy(module).float()
        with torch.no_grad():
            out: Any = module.eval()(ids.to(first.device))
    except Exception as error:  # whatever their code raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{label}: its forward failed on token ids (B, T): {type(error).__name__}: {reason}",
            "its logits are compared with those of the GPT that is inspected in its place",
        ) from error
    finally:
        module.train(training)
    hidden = not hasattr(out, "logits") and hasattr(out, "last_hidden_state")
    out = out.last_hidden_state if hidden else getattr(out, "logits", out)
    out = out[0] if isinstance(out, tuple) else out
    if not isinstance(out, Tensor):
        raise UserError(f"{label}: its forward returns {type(out).__name__}, no logits (B, T, V)")
    return out.detach().to("cpu", torch.float32), hidden
