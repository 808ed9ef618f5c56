"""Small decoders of ``transformers`` and what plain hooks measure on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB = 500


def small(kind: str, *, width: int = 64, layers: int = 2, seed: int = 0, **more: Any) -> nn.Module:
    """A drawn model of this type, in evaluation mode, with heads of 32 channels."""
    from transformers import AutoConfig, AutoModelForCausalLM

    heads = width // 32
    sizes = {
        "vocab_size": VOCAB, "hidden_size": width, "n_embd": width, "word_embed_proj_dim": width,
        "num_hidden_layers": layers, "n_layer": layers, "head_dim": 32,
        "num_attention_heads": heads, "n_head": heads, "num_key_value_heads": max(1, heads // 2),
        "intermediate_size": 4 * width, "ffn_dim": 4 * width, "moe_intermediate_size": width,
        "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 16,
        "max_position_embeddings": 256, "n_positions": 256, "sliding_window": 128,
        "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    if kind in ("phi", "olmo2", "gpt_neox", "stablelm"):
        sizes["num_key_value_heads"] = heads
    sizes.update(more)
    known = AutoConfig.for_model(kind)
    config = AutoConfig.for_model(
        kind,
        **{name: value for name, value in sizes.items() if name in more or hasattr(known, name)},
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def tokens(batch: int = 2, length: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.randint(
        VOCAB, (batch, length + 1), generator=torch.Generator().manual_seed(seed + 1)
    )
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def squares(
    module: nn.Module, paths: tuple[str, ...], ids: Tensor, targets: Tensor
) -> dict[str, list[float]]:
    """Mean squares of the stream and its gradients before every block and behind the last."""
    seen: list[Tensor] = []

    def keep(x: Tensor) -> None:
        x.retain_grad()
        seen.append(x)

    def before(_: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        keep(args[0] if args else named["hidden_states"])

    def behind(_: nn.Module, __: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        keep(output[0] if isinstance(output, tuple) else output)

    blocks = [module.get_submodule(path) for path in paths]
    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(behind))
    logits = module(ids).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    for handle in handles:
        handle.remove()
    gradients = [x.grad for x in seen if x.grad is not None]
    return {
        "stream": [float(x.detach().double().square().mean()) for x in seen],
        "grad": [float(g.double().square().mean()) for g in gradients],
        "loss": [float(loss.detach())],
    }
