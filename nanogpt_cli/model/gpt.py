"""GPTs: the GPT-2 architecture, and today's parts, with the names that checkpoints use.

Sources: the structure is that of GPT-2 (Radford et al. 2019; openai/gpt-2 ``src/model.py``) in the
layout of nanoGPT's ``model.py``: pre-LayerNorm blocks, fused query/key/value projection, learned
positions, a head tied to the token embedding. Linear weights are stored (out, in); Hugging Face
stores the four block matrices transposed (``Conv1D``).

A model with a part that GPT-2 lacks has the matrices and the names of Llama (Touvron et al. 2023,
arXiv:2302.13971), Qwen2 and Qwen3: RMSNorm, rotary positions, grouped queries, norms of queries and
keys, a gated MLP. ``GPTConfig.naming`` says which of the two a configuration has.

Shapes in comments: B batch, T time, C = n_embd channels, H heads, G heads of keys and values,
D = head_size (C/H unless a model says otherwise), V = vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_cli.machine.products import Linear
from nanogpt_cli.model import dropout
from nanogpt_cli.model import loss as losses
from nanogpt_cli.model.config import LAYER_NORM_EPS as LAYER_NORM_EPS
from nanogpt_cli.model.config import GPTConfig as GPTConfig
from nanogpt_cli.model.config import Multipliers as Multipliers
from nanogpt_cli.model.dropout import Noise
from nanogpt_cli.model.rms_norm import RMSNorm
from nanogpt_cli.model.rope import Rotation, rotation, turned

# Receives (name, layer, tensor) during a forward pass; layer is -1 outside the blocks. Statistics
# and inspection pass one to the eager module; a compiled module never gets one.
Probe = Callable[[str, int, Tensor], None]

# Up to this many positions, a CPU computes half-precision attention in float32.
_SHORT = 512


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al. 2021, Primer)."""
    return F.relu(x).square()


# "gelu" is the exact erf form nanoGPT uses; "gelu_tanh" the approximation OpenAI's GPT-2 was
# trained with. A checkpoint must keep the one it was trained with. Of gated MLPs, that of the gate.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu2,
    "silu": F.silu,
    "swiglu": F.silu,
    "geglu": F.gelu,
}


def _layer_norm(config: GPTConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias is True)


def _norm(config: GPTConfig) -> nn.Module:
    """The norm in front of a branch or the head."""
    if config.norm == "rms":
        return RMSNorm(config.n_embd, config.norm_eps)
    return _layer_norm(config)


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


class MLP(nn.Module):
    """Position-wise feed-forward network: expand, activate, contract."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.gated = config.gated
        self.activation = ACTIVATIONS[config.activation]
        rows, bias = config.hidden_size * (2 if self.gated else 1), config.bias is True
        self.c_fc = Linear(config.n_embd, rows, bias=bias)
        self.c_proj = Linear(config.hidden_size, config.n_embd, bias=bias)
        self.dropout = config.dropout

    def forward(self, x: Tensor, probe: Probe | None = None, noise: Noise | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        h = self.c_fc(x)  # (B, T, 4C); gate and value side by side if gated
        value: Tensor | None = None
        if self.gated:
            h, value = h.chunk(2, dim=-1)
        if probe is not None:
            probe("preact", self.layer, h)
        h = self.activation(h)
        if value is not None:
            h = h * value
        if probe is not None:
            probe("hidden", self.layer, h)
        return dropout.drop(self.c_proj(h), self.dropout * self.training, noise)


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


class GatedMLP(nn.Module):
    """Feed-forward network whose activations are multiplied with a second projection."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = config.dropout
        hidden, bias = config.hidden_size, config.bias is True
        self.gate_proj = Linear(config.n_embd, hidden, bias=bias)
        self.up_proj = Linear(config.n_embd, hidden, bias=bias)
        self.down_proj = Linear(hidden, config.n_embd, bias=bias)

    def forward(self, x: Tensor, probe: Probe | None = None, noise: Noise | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        gate = self.gate_proj(x)  # (B, T, hidden)
        h = self.activation(gate) * self.up_proj(x)
        if probe is not None:
            probe("preact", self.layer, gate)
            probe("hidden", self.layer, h)
        return dropout.drop(self.down_proj(h), self.dropout * self.training, noise)


class PlainMLP(nn.Module):
    """Feed-forward network without a gate, beside parts that GPT-2 lacks."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = config.dropout
        bias = config.bias is True
        self.up_proj = Linear(config.n_embd, config.hidden_size, bias=bias)
        self.down_proj = Linear(config.hidden_size, config.n_embd, bias=bias)

    def forward(self, x: Tensor, probe: Probe | None = None, noise: Noise | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        preact = self.up_proj(x)  # (B, T, hidden)
        h = self.activation(preact)
        if probe is not None:
            probe("preact", self.layer, preact)
            probe("hidden", self.layer, h)
        return dropout.drop(self.down_proj(h), self.dropout * self.training, noise)


class _Layer(nn.Module):
    """What the two kinds of block have in common: their branches' way into the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.residual = config.multipliers.residual

    def _join(self, x: Tensor, name: str, branch: Tensor, probe: Probe | None) -> Tensor:
        if self.residual != 1.0:
            branch = branch * self.residual
        if probe is not None:
            probe(name, self.layer, branch)
        return x + branch


class Block(_Layer):
    """One layer: attention and MLP, each behind a LayerNorm and added to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.ln_1 = _layer_norm(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = _layer_norm(config)
        self.mlp = MLP(config, layer)

    def forward(self, x: Tensor, probe: Probe | None = None, noise: Noise | None = None) -> Tensor:
        """Map the residual stream (B, T, C) before the block to that after it."""
        x = self._join(x, "attn", self.attn(self.ln_1(x), probe, noise), probe)
        x = self._join(x, "mlp", self.mlp(self.ln_2(x), probe, noise), probe)
        if probe is not None:
            probe("resid", self.layer, x)
        return x


class LlamaBlock(_Layer):
    """A ``Block`` with Llama's names, made of the parts that the configuration asks for."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.input_layernorm = _norm(config)
        self.self_attn = GroupedAttention(config, layer)
        self.post_attention_layernorm = _norm(config)
        self.mlp = GatedMLP(config, layer) if config.gated else PlainMLP(config, layer)

    def forward(
        self,
        x: Tensor,
        probe: Probe | None = None,
        noise: Noise | None = None,
        turn: Rotation | None = None,
    ) -> Tensor:
        """As ``Block.forward``; ``turn`` is the rotation of queries and keys at each position."""
        x = self._join(
            x, "attn", self.self_attn(self.input_layernorm(x), probe, noise, turn), probe
        )
        x = self._join(x, "mlp", self.mlp(self.post_attention_layernorm(x), probe, noise), probe)
        if probe is not None:
            probe("resid", self.layer, x)
        return x


class Transformer(nn.Module):
    """Embeddings, blocks and the final LayerNorm under the names of GPT-2's checkpoints."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = _layer_norm(config)


class LlamaModel(nn.Module):
    """Embedding, blocks and the final norm under Llama's names.

    Learned positions, which no model with these names has, are called ``embed_positions``.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.embed_positions = nn.Embedding(config.block_size, config.n_embd)
        self.layers = nn.ModuleList(LlamaBlock(config, layer) for layer in range(config.n_layer))
        self.norm = _norm(config)


class GPT(nn.Module):
    """A GPT language model.

    The constructor leaves PyTorch's own initial values in place; ``init.drawing.build`` gives the
    model those of a named scheme. Code for either naming reaches the parts by ``token_table``,
    ``position_table``, ``blocks`` and ``last_norm``.
    """

    transformer: Transformer  # of models with GPT-2's names alone
    model: LlamaModel  # of the others

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        if config.naming == "gpt2":
            self.transformer = Transformer(config)
        else:
            self.model = LlamaModel(config)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie()

    @property
    def token_table(self) -> nn.Embedding:
        """The token embedding, (V, C)."""
        return self.transformer.wte if self.config.naming == "gpt2" else self.model.embed_tokens

    @property
    def position_table(self) -> nn.Embedding | None:
        """The position embedding, (block_size, C); ``None`` with rotary positions."""
        if self.config.position == "rope":
            return None
        return self.transformer.wpe if self.config.naming == "gpt2" else self.model.embed_positions

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks in order: ``Block`` or ``LlamaBlock``."""
        return self.transformer.h if self.config.naming == "gpt2" else self.model.layers

    @property
    def last_norm(self) -> nn.Module:
        """The norm in front of the head."""
        return self.transformer.ln_f if self.config.naming == "gpt2" else self.model.norm

    def tie(self) -> None:
        """Make the head and the token embedding share one tensor if the configuration says so."""
        if self.config.tied:
            self.lm_head.weight = self.token_table.weight

    def embed(self, idx: Tensor, start: int = 0, noise: Noise | None = None) -> Tensor:
        """What the first block is given, (B, T, C), for (B, T) ids at positions from ``start`` on.

        The sum of token and position embedding; with rotary positions the token embedding alone.
        """
        T = idx.shape[1]
        if start + T > self.config.block_size:
            raise ValueError(f"{start + T} positions, but block_size is {self.config.block_size}")
        x: Tensor = self.token_table(idx)
        if self.position_table is not None:
            x = x + self.position_table(torch.arange(start, start + T, device=idx.device))
        if self.config.multipliers.embedding != 1.0:
            x = x * self.config.multipliers.embedding
        return dropout.drop(x, self.config.dropout * self.training, noise)

    def stream(self, idx: Tensor, probe: Probe | None = None, noise: Noise | None = None) -> Tensor:
        """The residual stream (B, T, C) after the last block; arguments as of ``forward``."""
        x = self.embed(idx, noise=noise)
        if probe is not None:
            probe("embed", -1, x)
        turn: tuple[Rotation, ...] = ()
        if self.config.position == "rope":
            positions = torch.arange(idx.shape[1], device=idx.device)
            turn = (rotation(positions, self.config.head_size, self.config.rope_theta),)
        for block in self.blocks:
            x = block(x, probe, noise, *turn)
        return x

    def head(self, x: Tensor) -> Tensor:
        """Map the residual stream (B, T, C) to logits (B, T, V)."""
        logits: Tensor = self.lm_head(self.last_norm(x))
        if self.config.multipliers.output != 1.0:
            logits = logits * self.config.multipliers.output
        return logits

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        probe: Probe | None = None,
        noise: Noise | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the logits of every position and, given targets, the mean cross-entropy.

        Args:
            idx: (B, T) int64 token ids, T ≤ block_size.
            targets: (B, T) int64 next ids; -1 is ignored.
            probe: see ``Probe``.
            noise: dropout noise of the B sequences; without it PyTorch's generator is used.

        Returns:
            logits (B, T, V) and the loss in nats (``None`` without targets).
        """
        logits = self.head(self.stream(idx, probe, noise))
        if targets is None:
            return logits, None
        loss = F.cross_entropy(
            logits.view(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=losses.IGNORED
        )
        return logits, loss

    def loss(self, idx: Tensor, targets: Tensor, noise: Noise | None = None) -> Tensor:
        """The mean cross-entropy alone, in nats; arguments as of ``forward``.

        What training calls: a model that returned its logits too would keep them, and their
        gradient of zeros, through the backward pass.
        """
        return self.head_loss(self.stream(idx, None, noise), targets)

    def head_loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of what the head makes of the residual stream (B, T, C)."""
        x = self.last_norm(x)
        return losses.mean(x, self.lm_head.weight, targets, self.config.multipliers.output)

    def token_losses(self, idx: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of every target in nats, float32 (B, T); without gradients."""
        x = self.last_norm(self.stream(idx))
        return losses.each(x, self.lm_head.weight, targets, self.config.multipliers.output)

    def n_parameters(self, *, embedding: bool = True) -> int:
        """Count parameters, tied ones once; optionally without embedding tables and head."""
        tables = {self.token_table.weight, self.lm_head.weight}
        if self.position_table is not None:
            tables.add(self.position_table.weight)
        return sum(p.numel() for p in self.parameters() if embedding or p not in tables)
