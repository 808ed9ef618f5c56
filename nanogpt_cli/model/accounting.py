"""Parameters, arithmetic and memory of a GPT, from its configuration alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanogpt_cli.model.config import GPTConfig
from nanogpt_cli.model.parameters import shapes, tensor_class

_BLOCK_MATRICES = ("qkv", "q", "k", "v", "attn_proj", "gate", "fc", "mlp_proj")


@dataclass(frozen=True)
class Account:
    """Sizes of a model.

    Attributes:
        parameters: total number of parameters; a tied head counts once.
        embedding: parameters of the token and position tables (and of an untied head).
        decayed: parameters in two-dimensional tensors, which weight decay acts on.
        by_class: number of parameters by tensor class.
        flops_forward: twice the exact multiply-adds of one forward pass, per token at full
            context; attention counts its causal half only.
        flops_training: the usual estimate per token, 6N + 12·L·d·T; see ``training_flops``.
        memory: bytes by component while training in float32 on micro-batches of one sequence.
        checkpoint: bytes of the weights and AdamW's two moments.
    """

    parameters: int
    embedding: int
    decayed: int
    by_class: dict[str, int]
    flops_forward: float
    flops_training: float
    memory: dict[str, int]
    checkpoint: int

    @property
    def non_embedding(self) -> int:
        """Parameters outside the embedding tables and an untied head."""
        return self.parameters - self.embedding


def training_flops(config: GPTConfig) -> float:
    """Training FLOPs per token: 6N + 12·L·H·D·T (Chowdhery et al. 2022, appendix B).

    N counts the parameters of the blocks, the last norm and the head. Embedding lookups cost
    nothing, so the position table and the token table of an untied model are left out.
    """
    looked_up = ("wpe",) if config.tied else ("wpe", "wte")
    total = sum(
        math.prod(shape)
        for name, shape in shapes(config).items()
        if tensor_class(name) not in looked_up
    )
    return 6.0 * total + 12.0 * config.n_layer * config.q_size * config.block_size


def account(config: GPTConfig) -> Account:
    """Compute every size of a model with this configuration."""
    by_class: dict[str, int] = {}
    decayed = 0
    for name, shape in shapes(config).items():
        size = math.prod(shape)
        kind = tensor_class(name)
        by_class[kind] = by_class.get(kind, 0) + size
        decayed += size if len(shape) == 2 else 0
    total = sum(by_class.values())
    tables = sum(by_class.get(kind, 0) for kind in ("wte", "wpe", "lm_head"))
    L, d, T = config.n_layer, config.n_embd, config.block_size
    matrices = sum(by_class.get(kind, 0) for kind in _BLOCK_MATRICES)
    head = config.vocab_size * d
    return Account(
        parameters=total,
        embedding=tables,
        decayed=decayed,
        by_class=by_class,
        flops_forward=2 * (matrices + head) + 2 * L * config.q_size * (T + 1),
        flops_training=training_flops(config),
        memory={
            "weights": 4 * total,
            "gradients": 4 * total,
            "AdamW moments": 8 * total,
            "activations": activation_bytes(config),
            "logits": 2 * 4 * T * config.vocab_size,
        },
        checkpoint=12 * total,
    )


def activation_bytes(config: GPTConfig) -> int:
    """Bytes kept for the backward pass of one float32 sequence.

    Twice the 34·T·d bytes per layer of Korthikanti et al. 2205.05198 (16-bit, with dropout masks).
    There is no T² term, because fused attention does not keep the attention matrix.
    """
    return 2 * 34 * config.n_layer * config.block_size * config.n_embd
