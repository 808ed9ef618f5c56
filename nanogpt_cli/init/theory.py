"""Mean-field theory of a decoder before its first step, computed without weights."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from nanogpt_cli.init.backward_theory import Backward
from nanogpt_cli.init.blueprint import Blueprint, Variances
from nanogpt_cli.init.forward_theory import Forward
from nanogpt_cli.init.loss_theory import initial_loss
from nanogpt_cli.init.signals import Signals
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.schemes import Scheme

__all__ = [
    "Variances",
    "dropout_factors",
    "expect",
    "expect_decoder",
    "initial_loss",
    "random_tokens",
]


def expect(
    config: GPTConfig,
    scheme: Scheme,
    idx: Tensor,
    targets: Tensor,
    *,
    backward: bool = True,
    layer_norm: bool = True,
    sizes: Tensor | None = None,
    last: int = 0,
    dropout: float = 0.0,
) -> Signals:
    """Expected signals of ``scheme`` on given tokens, without drawing a weight.

    Args:
        config: with the scheme's multipliers (``init.drawing.configure``).
        scheme: from ``schemes.get``.
        idx, targets: (B, T) int64; the cost grows with (B·T)².
        backward: whether to compute gradients, which takes about twice as long.
        layer_norm: False leaves every LayerNorm out (an ablation).
        sizes, last, dropout: see ``forward_theory.Forward``.
    """
    plan = Blueprint.of(config, scheme, layer_norm=layer_norm)
    more: dict[str, Any] = {"sizes": sizes, "last": last, "dropout": dropout}
    return expect_decoder(plan, idx, targets, backward=backward, **more)


def expect_decoder(
    plan: Blueprint,
    idx: Tensor,
    targets: Tensor,
    *,
    backward: bool = True,
    sizes: Tensor | None = None,
    last: int = 0,
    dropout: float = 0.0,
) -> Signals:
    """Expected signals of any decoder; the arguments are those of ``expect``.

    Gradients stay empty for mixtures of experts and where x₀ is added to the stream again.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads would cost more than they gain on such small matrices
    try:
        forward = Forward(plan, idx, targets, sizes=sizes, last=last, dropout=dropout)
        C = forward.run(keep=backward)
        if backward and not plan.experts and not any(layer.first for layer in plan.layers):
            Backward(forward).run(C)
        return forward.out
    finally:
        torch.set_num_threads(threads)


def dropout_factors(config: GPTConfig, scheme: Scheme, idx: Tensor, targets: Tensor) -> list[float]:
    """The stream's RMS with the dropout of ``config`` over that without, at each depth.

    At the embedding it is 1/√(1-p). Each branch is dropped as well, which makes its own variance
    1/(1-p) times as large; but a branch reads the stream through LayerNorm, so that noise takes
    room from what positions have in common, and attention averages it away.

    Args:
        config: with the scheme's multipliers.
        scheme: from ``schemes.get``.
        idx, targets: (B, T) int64.
    """
    off, on = (
        expect(config, scheme, idx, targets, backward=False, dropout=p).stream_rms
        for p in (0.0, config.dropout)
    )
    return [a / b if b else 1.0 for a, b in zip(on, off, strict=True)]


class HasVocabulary(Protocol):
    """What random tokens depend on; a ``GPTConfig`` has it."""

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        ...


def random_tokens(
    config: HasVocabulary, batch: int, length: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Uniform token ids and their next ids, (batch, length) each."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (batch, length + 1), generator=rng)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
