"""GPTs: the GPT-2 architecture, and today's parts, with the names that checkpoints use.

Sources: the structure is that of GPT-2 (Radford et al. 2019; openai/gpt-2 ``src/model.py``) in the
layout of nanoGPT's ``model.py``: pre-LayerNorm blocks, fused query/key/value projection, learned
positions, a head tied to the token embedding. Linear weights are stored (out, in); Hugging Face
stores the four block matrices transposed (``Conv1D``).

A model with a part that GPT-2 lacks has the matrices and the names of Llama (Touvron et al. 2023,
arXiv:2302.13971), Qwen2 and Qwen3: RMSNorm, rotary positions, grouped queries, norms of queries and
keys, a gated MLP. ``GPTConfig.naming`` says which of the two a configuration has.

Shapes in comments: B batch, T time, C = n_embd channels, V = vocab_size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_cli.machine.products import Linear
from nanogpt_cli.model import dropout
from nanogpt_cli.model import loss as losses
from nanogpt_cli.model.attention import CausalSelfAttention, GroupedAttention, Probe
from nanogpt_cli.model.config import GPTConfig as GPTConfig
from nanogpt_cli.model.config import Multipliers as Multipliers
from nanogpt_cli.model.dropout import Noise
from nanogpt_cli.model.mlp import MLP, GatedMLP, PlainMLP
from nanogpt_cli.model.rms_norm import RMSNorm
from nanogpt_cli.model.rope import Rotation, rotation


def _layer_norm(config: GPTConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias is True)


def _norm(config: GPTConfig) -> nn.Module:
    """The norm in front of a branch or the head."""
    if config.norm == "rms":
        return RMSNorm(config.n_embd, config.norm_eps)
    return _layer_norm(config)


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
