"""Converting a foreign ``nn.Module`` with GPT-2's parameter names to this package's GPT."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from nanogpt_cli.errors import UserError
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.model.parameters import shapes

_BLOCK = re.compile(r"^transformer\.h\.(\d+)\.")


def adopt(module: nn.Module, label: str) -> GPT:
    """A GPT with the values of ``module``'s parameters, recognised by GPT-2's names and shapes.

    Matrices may be stored as (out, in) or, as in Hugging Face's models, as (in, out).

    Raises:
        UserError: a name or shape is not that of a GPT-2; the message gives the first one.
    """
    if isinstance(module, GPT):
        own: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        _complete(module.config, own, label)
        for name, shape in shapes(module.config).items():
            if tuple(own[name].shape) != shape:
                raise UserError(f"{label}: {name} is {tuple(own[name].shape)}, expected {shape}")
        return module.eval().requires_grad_(False)
    found = {n: p.detach() for n, p in module.named_parameters(remove_duplicate=False)}
    config = _config(module, found, label)
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.tie()
    with torch.no_grad():
        for name, shape in shapes(config).items():
            value = found[name]
            square = _is_transposed_square(module, name)
            if square or (value.shape != shape and value.T.shape == shape):
                value = value.T
            if tuple(value.shape) != shape:
                raise UserError(f"{label}: {name} is {tuple(value.shape)}, expected {shape}")
            model.get_parameter(name).copy_(value)
    return model.eval().requires_grad_(False)


def _is_transposed_square(module: nn.Module, name: str) -> bool:
    """Whether this is a square matrix of Hugging Face's Conv1D, transposed despite its shape."""
    owner = module.get_submodule(name.rpartition(".")[0])
    return type(owner).__name__ == "Conv1D" and name.endswith("attn.c_proj.weight")


def _config(module: nn.Module, found: dict[str, Tensor], label: str) -> GPTConfig:
    wte, wpe = found.get("transformer.wte.weight"), found.get("transformer.wpe.weight")
    layers = {int(m[1]) for m in map(_BLOCK.match, found) if m}
    if wte is None or wpe is None or not layers:
        names = ", ".join(list(found)[:3]) or "none"
        raise UserError(
            f"{label} is not a GPT-2: no transformer.wte, transformer.wpe and transformer.h.N",
            f"its parameters begin with {names}",
        )
    d = wte.shape[1]
    head = found.get("lm_head.weight", wte)
    tied = head is wte or head.data_ptr() == wte.data_ptr()
    config = GPTConfig(
        n_layer=max(layers) + 1,
        n_head=_heads(module, d),
        n_embd=d,
        block_size=wpe.shape[0],
        vocab_size=wte.shape[0],
        dropout=0.0,
        bias="transformer.h.0.attn.c_attn.bias" in found,
        activation=_activation(module),
        tied=tied,
    )
    _complete(config, found, label)
    return config


def _complete(config: GPTConfig, found: dict[str, Tensor], label: str) -> None:
    missing = [name for name in shapes(config) if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{label} is not a GPT-2: it has no {missing[0]}{more}")
    if empty := [name for name, value in found.items() if value.is_meta]:
        raise UserError(f"{label}: {empty[0]} is on the device meta and has no values")


def _heads(module: nn.Module, d: int) -> int:
    settings = getattr(module, "config", None)
    heads = getattr(settings, "n_head", None)
    if isinstance(heads, int) and heads > 0 and d % heads == 0:
        return heads
    return d // 64 if d % 64 == 0 else math.gcd(d, 8)


def _activation(module: nn.Module) -> str:
    """Read from ``config.activation_function`` (Hugging Face) or the MLP's activation module."""
    named = getattr(getattr(module, "config", None), "activation_function", None)
    if named in ("gelu_new", "gelu_pytorch_tanh"):
        return "gelu_tanh"
    kinds = {"ReLU": "relu", "SiLU": "silu", "GELU": "gelu"}
    for child in module.modules():
        kind = type(child).__name__
        if kind in kinds:
            tanh = getattr(child, "approximate", "none") == "tanh"
            return "gelu_tanh" if tanh else kinds[kind]
    return "gelu"
