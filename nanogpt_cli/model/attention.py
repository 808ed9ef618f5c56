"""Causal self-attention under the names of GPT-2's checkpoints and of Llama's.

Shapes in comments: B batch, T time, C = n_embd channels, H heads, G heads of keys and values,
D = head_size (C/H unless a model says otherwise).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_cli.machine.products import Linear
from nanogpt_cli.model import dropout
from nanogpt_cli.model.config import GPTConfig
from nanogpt_cli.model.dropout import Noise
from nanogpt_cli.model.rms_norm import RMSNorm
from nanogpt_cli.model.rope import Rotation, turned

# Receives (name, layer, tensor) during a forward pass; layer is -1 outside the blocks. Statistics
# and inspection pass one to the eager module; a compiled module never gets one.
Probe = Callable[[str, int, Tensor], None]

# Up to this many positions, a CPU computes half-precision attention in float32.
_SHORT = 512


def for_each_query(kv: Tensor, q: Tensor) -> Tensor:
    """Keys or values (B, G, T, D) repeated for the query heads (B, H, ...) that share them."""
    H, G = q.shape[1], kv.shape[1]
    return kv if H == G else kv.repeat_interleave(H // G, dim=1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, p: float, noise: Noise | None = None
) -> Tensor:
    """Causal attention of (B, H, T, D) queries to (B, G, T, D) keys and values, p the dropout.

    For short contexts, PyTorch's fused CPU kernel is slower in half precision than in float32: its
    backward pass takes five times as long at 64 positions and a quarter longer at 256.
    """
    if p and noise is not None:
        k, v = for_each_query(k, q), for_each_query(v, q)
        return dropout.attend(q, k, v, scale=scale, p=p, noise=noise)
    # On GPUs, only the kernel for half precision knows shared keys; others would store the scores.
    shared = q.shape[1] != k.shape[1] and (q.device.type == "cpu" or q.dtype.itemsize == 2)
    if not shared:
        k, v = for_each_query(k, q), for_each_query(v, q)
    attend = partial(
        F.scaled_dot_product_attention,
        is_causal=True, scale=scale, dropout_p=p, enable_gqa=shared,
    )  # fmt: skip
    if q.device.type != "cpu" or q.dtype == torch.float32 or q.shape[2] > _SHORT:
        return attend(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return attend(q.float(), k.float(), v.float()).to(q.dtype)


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which each position attends to itself and its past."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.scale = config.attention_scale
        self.dropout = config.dropout
        bias = config.bias is True
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=bias)

    def forward(self, x: Tensor, probe: Probe | None = None, noise: Noise | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)  # each (B, T, C)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))
        if probe is not None:  # (B, H, T, D)
            probe("q", self.layer, q)
            probe("k", self.layer, k)
            probe("v", self.layer, v)
        p = self.dropout * self.training
        y = _attend(q, k, v, scale=self.scale, p=p, noise=noise)
        y = y.transpose(1, 2).reshape(B, T, C)
        return dropout.drop(self.c_proj(y), p, noise)


class GroupedAttention(nn.Module):
    """Causal attention with Llama's names: matrices apart, rotary positions, shared keys.

    Each head of keys and values serves H/G query heads (Ainslie et al. 2023, arXiv:2305.13245).
    ``qk_norm`` divides queries and keys by their root mean square, as Qwen3 does, before they are
    turned.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_size = config.head_size
        self.scale = config.attention_scale
        self.dropout = config.dropout
        bias = bool(config.bias)
        self.q_proj = Linear(config.n_embd, config.q_size, bias=bias)
        self.k_proj = Linear(config.n_embd, config.kv_size, bias=bias)
        self.v_proj = Linear(config.n_embd, config.kv_size, bias=bias)
        self.o_proj = Linear(config.q_size, config.n_embd, bias=config.bias is True)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_size, config.norm_eps)
            self.k_norm = RMSNorm(config.head_size, config.norm_eps)

    def forward(
        self,
        x: Tensor,
        probe: Probe | None = None,
        noise: Noise | None = None,
        turn: Rotation | None = None,
    ) -> Tensor:
        """Map (B, T, C) to (B, T, C). A probe is shown what attention reads, one key per query."""
        q = turned(self.q_norm(self._heads(self.q_proj(x))), turn)  # (B, H, T, D)
        k = turned(self.k_norm(self._heads(self.k_proj(x))), turn)  # (B, G, T, D)
        v = self._heads(self.v_proj(x))  # (B, G, T, D)
        if probe is not None:
            probe("q", self.layer, q)
            probe("k", self.layer, for_each_query(k, q))
            probe("v", self.layer, for_each_query(v, q))
        p = self.dropout * self.training
        y = _attend(q, k, v, scale=self.scale, p=p, noise=noise)
        return dropout.drop(self.o_proj(y.transpose(1, 2).flatten(2)), p, noise)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_size).transpose(1, 2)
