"""The GPT-2 architecture, with the names its checkpoints use.

Sources: the structure is that of GPT-2 (Radford et al. 2019; openai/gpt-2 ``src/model.py``) in the
layout of nanoGPT's ``model.py``: pre-LayerNorm blocks, fused query/key/value projection, learned
positions, a head tied to the token embedding. Linear weights are stored (out, in); Hugging Face
stores the four block matrices transposed (``Conv1D``).

Shapes in comments: B batch, T time, C = n_embd channels, H heads, D = C/H, V = vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_cli.model import dropout, limits
from nanogpt_cli.model import loss as losses
from nanogpt_cli.model.dropout import Noise

# Receives (name, layer, tensor) during a forward pass; layer is -1 outside the blocks. Statistics
# and inspection pass one to the eager module; a compiled module never gets one.
Probe = Callable[[str, int, Tensor], None]

LAYER_NORM_EPS = 1e-5
# Up to this many positions, a CPU computes half-precision attention in float32.
_SHORT = 512


@dataclass(frozen=True)
class Multipliers:
    """Constant factors in the forward pass that a parametrisation such as µP asks for (1 in GPT-2).

    Attributes:
        embedding: multiplies the sum of token and position embedding.
        residual: multiplies each branch before it is added to the residual stream.
        attention: multiplies query·key; ``None`` means 1/√D.
        output: multiplies the logits.
    """

    embedding: float = 1.0
    residual: float = 1.0
    attention: float | None = None
    output: float = 1.0


@dataclass(frozen=True)
class GPTConfig:
    """Everything that fixes the shape and the function of a GPT.

    The defaults are those of the recipe. ``vocab_size`` counts the rows of the embedding, which may
    be padded beyond the tokenizer's vocabulary.
    """

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    dropout: float
    bias: bool
    activation: str
    tied: bool = True
    multipliers: Multipliers = Multipliers()

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.activation not in ACTIVATIONS and self.activation != "swiglu":
            raise ValueError(f"unknown activation {self.activation!r}")

    @property
    def head_size(self) -> int:
        """Channels per head, D."""
        return self.n_embd // self.n_head

    @property
    def attention_scale(self) -> float:
        """The factor on query·key."""
        attention = self.multipliers.attention
        return 1 / math.sqrt(self.head_size) if attention is None else attention

    @property
    def hidden_size(self) -> int:
        """Rows of ``mlp.c_proj``'s input: 4C, or 8C/3 rounded up to 8 for the gated SwiGLU."""
        if self.activation == "swiglu":
            return 8 * math.ceil(self.n_embd / 3)
        return 4 * self.n_embd

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``state.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPTConfig:
        """The inverse of ``to_dict``, for values from a file.

        Raises:
            ValueError: a key is missing or unknown, or a value is of another type or out of range.
        """
        limits.check_config(values)
        factors = values.get("multipliers", {})
        for kind, found in ((cls, values), (Multipliers, factors)):
            if unknown := found.keys() - {item.name for item in fields(kind)}:
                raise ValueError(f"{min(unknown)!r:.80} is no key of a model's configuration")
        try:
            return cls(**{**values, "multipliers": Multipliers(**factors)})
        except TypeError as error:  # a key is missing
            raise ValueError(f"not a model configuration: {error}") from error


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al. 2021, Primer)."""
    return F.relu(x).square()


# "gelu" is the exact erf form nanoGPT uses; "gelu_tanh" the approximation OpenAI's GPT-2 was
# trained with. A checkpoint must keep the one it was trained with.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu2,
    "silu": F.silu,
}


def _layer_norm(config: GPTConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.n_embd, LAYER_NORM_EPS, bias=config.bias)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, p: float, noise: Noise | None = None
) -> Tensor:
    """Causal attention of (B, H, T, D) queries, keys and values; ``p`` is the dropout probability.

    For short contexts, PyTorch's fused CPU kernel is slower in half precision than in float32: its
    backward pass takes five times as long at 64 positions and a quarter longer at 256.
    """
    if p and noise is not None:
        return dropout.attend(q, k, v, scale=scale, p=p, noise=noise)
    attend = partial(F.scaled_dot_product_attention, is_causal=True, scale=scale, dropout_p=p)
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
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

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
        self.gated = config.activation == "swiglu"
        self.activation = F.silu if self.gated else ACTIVATIONS[config.activation]
        rows = config.hidden_size * (2 if self.gated else 1)
        self.c_fc = nn.Linear(config.n_embd, rows, bias=config.bias)
        self.c_proj = nn.Linear(config.hidden_size, config.n_embd, bias=config.bias)
        self.dropout = config.dropout

    def forward(self, x: Tensor, probe: Probe | None = None, noise: Noise | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        h = self.c_fc(x)  # (B, T, 4C); gate and value side by side for SwiGLU
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


class Block(nn.Module):
    """One layer: attention and MLP, each behind a LayerNorm and added to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.residual = config.multipliers.residual
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

    def _join(self, x: Tensor, name: str, branch: Tensor, probe: Probe | None) -> Tensor:
        if self.residual != 1.0:
            branch = branch * self.residual
        if probe is not None:
            probe(name, self.layer, branch)
        return x + branch


class Transformer(nn.Module):
    """Embeddings, blocks and the final LayerNorm under the names of GPT-2's checkpoints."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = _layer_norm(config)


class GPT(nn.Module):
    """A GPT-2 language model.

    The constructor leaves PyTorch's own initial values in place; ``init.drawing.build`` gives the
    model those of a named scheme.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie()

    def tie(self) -> None:
        """Make the head and the token embedding share one tensor if the configuration says so."""
        if self.config.tied:
            self.lm_head.weight = self.transformer.wte.weight

    def embed(self, idx: Tensor, start: int = 0, noise: Noise | None = None) -> Tensor:
        """Token plus position embedding (B, T, C) of (B, T) ids at positions from ``start`` on."""
        T = idx.shape[1]
        if start + T > self.config.block_size:
            raise ValueError(f"{start + T} positions, but block_size is {self.config.block_size}")
        positions = torch.arange(start, start + T, device=idx.device)
        x: Tensor = self.transformer.wte(idx) + self.transformer.wpe(positions)
        if self.config.multipliers.embedding != 1.0:
            x = x * self.config.multipliers.embedding
        return dropout.drop(x, self.config.dropout * self.training, noise)

    def head(self, x: Tensor) -> Tensor:
        """Map the residual stream (B, T, C) to logits (B, T, V)."""
        logits: Tensor = self.lm_head(self.transformer.ln_f(x))
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
        x = self.embed(idx, noise=noise)
        if probe is not None:
            probe("embed", -1, x)
        for block in self.transformer.h:
            x = block(x, probe, noise)
        logits = self.head(x)
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
        x = self.embed(idx, noise=noise)
        for block in self.transformer.h:
            x = block(x, None, noise)
        return self.head_loss(x, targets)

    def head_loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of what the head makes of the residual stream (B, T, C)."""
        x = self.transformer.ln_f(x)
        return losses.mean(x, self.lm_head.weight, targets, self.config.multipliers.output)

    def token_losses(self, idx: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of every target in nats, float32 (B, T); without gradients."""
        x = self.embed(idx)
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        return losses.each(x, self.lm_head.weight, targets, self.config.multipliers.output)

    def n_parameters(self, *, embedding: bool = True) -> int:
        """Count parameters, tied ones once; optionally without embedding tables and head."""
        tables = {self.transformer.wte.weight, self.transformer.wpe.weight, self.lm_head.weight}
        return sum(p.numel() for p in self.parameters() if embedding or p not in tables)
