"""The model that is traced for ONNX: one forward pass with a key/value cache, masks and positions.

Attention is written out, because a row of padding attends to nothing: there the library's fused
attention gives NaN, which would spread through the values.
"""

from __future__ import annotations

import re
from typing import Final

import torch
from torch import Tensor, nn

from nanogpt_cli.model.attention import CausalSelfAttention, GroupedAttention
from nanogpt_cli.model.gpt import GPT, Block, LlamaBlock
from nanogpt_cli.model.rope import Rotation, rotation, turned

# The tensors of a block that lie in the file as (in, out).
MATRICES: Final = re.compile(
    r"\.(?:c_attn|c_proj|c_fc|[qkvo]_proj|gate_proj|up_proj|down_proj)\.weight$"
)

Cache = tuple[Tensor, Tensor]


class Cached(nn.Module):
    """A GPT that takes ids with a cache and returns the extended cache; it modifies ``model``."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model
        for part in list(model.blocks.modules()):
            for name, child in part.named_children():
                if isinstance(child, nn.Linear):
                    setattr(part, name, _TransposedLinear(child))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[Cache],
    ) -> tuple[Tensor, list[Cache]]:
        """Ids and positions (B, T), mask (B, P + T), caches (B, G, P, D) to logits (B, T, V)."""
        model, config = self.model, self.model.config
        x = model.token_table(input_ids)
        turn: Rotation | None = None
        if model.position_table is not None:
            x = x + model.position_table(position_ids)
        else:
            found = rotation(position_ids, config.head_size, config.rope_theta)
            turn = Rotation(*(part[:, None] for part in found))  # (B, 1, T, D/2), for all heads
        masked = self._masked(attention_mask, input_ids.shape[1])
        present = []
        for block, cache in zip(model.blocks, past, strict=True):
            assert isinstance(block, Block | LlamaBlock)
            x, extended = _block(block, x, cache, masked, turn)
            present.append(extended)
        return model.lm_head(model.last_norm(x)), present

    @staticmethod
    def _masked(mask: Tensor, T: int) -> Tensor:
        """The keys that a query must not attend to, future and padding: bool (B, 1, T, P + T)."""
        total = mask.shape[1]
        keys = torch.arange(total, device=mask.device)
        queries = keys[total - T :]
        future = keys[None, :] > queries[:, None]
        return future[None, None] | (mask == 0)[:, None, None]


def _block(
    block: Block | LlamaBlock, x: Tensor, cache: Cache, masked: Tensor, turn: Rotation | None
) -> tuple[Tensor, Cache]:
    norm: nn.Module
    if isinstance(block, Block):
        q, k, v = _fused(block.attn, block.ln_1(x))
        scale, project, norm = block.attn.scale, block.attn.c_proj, block.ln_2
    else:
        q, k, v = _grouped(block.self_attn, block.input_layernorm(x), turn)
        scale, project = block.self_attn.scale, block.self_attn.o_proj
        norm = block.post_attention_layernorm
    k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
    x = x + project(_attend(q, k, v, scale, masked))
    return x + block.mlp(norm(x)), (k, v)


def _fused(attention: CausalSelfAttention, x: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values (B, H, T, D) of GPT-2's one matrix."""
    B, T, C = x.shape
    H = attention.n_head
    parts = attention.c_attn(x).split(C, dim=2)
    return tuple(t.reshape(B, T, H, C // H).transpose(1, 2) for t in parts)


def _grouped(attention: GroupedAttention, x: Tensor, turn: Rotation | None) -> tuple[Tensor, ...]:
    """Queries (B, H, T, D), keys and values (B, G, T, D) of matrices apart."""
    B, T, _ = x.shape
    q, k, v = (
        project(x).reshape(B, T, -1, attention.head_size).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return turned(attention.q_norm(q), turn), turned(attention.k_norm(k), turn), v


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, masked: Tensor) -> Tensor:
    """What (B, H, T, D) queries read from (B, G, P + T, D) keys and values, as (B, T, H · D)."""
    B, H, T, D = q.shape
    G = k.shape[1]
    if G < H:
        # Queries that share a head lie one below the other, so that no key has to be repeated.
        q, masked = q.reshape(B, G, -1, D), masked.repeat(1, 1, H // G, 1)
    scores = (q @ k.transpose(2, 3)) * scale
    scores = scores.masked_fill(masked, torch.finfo(scores.dtype).min)
    y = scores.softmax(-1) @ v
    return y.reshape(B, H, T, D).transpose(1, 2).reshape(B, T, H * D)


class _TransposedLinear(nn.Module):
    """A linear layer whose weight is stored as (in, out), which is the form ONNX multiplies by.

    Otherwise the graph would transpose every weight each time a session starts.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.T.contiguous())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias
