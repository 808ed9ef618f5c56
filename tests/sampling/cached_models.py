"""Models of random weights that the tests of sampling share."""

from __future__ import annotations

import torch

from nanogpt_cli.model.gpt import GPT, GPTConfig

V = 61  # rows of the embedding; test_sampler takes ids from 57 on for padding
MODERN: dict[str, object] = {
    "norm": "rms", "position": "rope", "qk_norm": True, "n_kv_head": 2, "activation": "swiglu",
    "bias": False, "tied": False,
}  # fmt: skip


def make(seed: int = 0, **changes: object) -> GPT:
    values: dict[str, object] = {
        "n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": V,
        "dropout": 0.0, "bias": True, "activation": "gelu",
    }  # fmt: skip
    model = GPT(GPTConfig(**(values | changes)))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.dim() == 2 else 0.1
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise + (parameter if parameter.dim() == 1 else 0))
    return model.eval()
