"""An end-of-text token for models that have none: in llama.cpp every vocabulary has one.

The row that is added must never be written, and must not change what the other rows say. A row of
zeros would get the logit 0, which may be likely. Each architecture has another way to give the new
row a logit far below the others: a LayerNorm's output is constant in one direction, llama.cpp's
Qwen2 may have a bias of the logits, and in Llama and Qwen3 the stream gets a channel that is the
same for every token.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt_cli.interop.source import Exportable, FoldedWeights
from nanogpt_cli.model.parameters import tensor_class

# Below the mean of all logits: e^-50 is never sampled.
_LOGIT: Final = -50.0
# Channels are added up to a multiple of it, which is the block of every quantisation.
_BLOCK: Final = 32
# The added channel, as a part of the smallest embedding: at most 1e-6/C of a sum of squares there.
_SMALL: Final = 2.0**-10
# The new row's logit where the stream is as large as the embedding. With a stream of 10,000 times
# that it is still -100.
_FAR: Final = -1e6


def layer_norm_tensors(source: Exportable) -> dict[str, Tensor]:
    """The tensors that change in a GPT-2 with one more token.

    With u = 1/weight of the final LayerNorm, u·(weight · normalised) is the sum of the normalised
    values, which is 0; if a weight is 0, that axis is constant. Shifting the bias along u so that
    u·bias = 1 lets every row add a constant to its logit: the old rows subtract what the shift
    added, the new row is the mean row minus 50.
    """
    weights = source.weights
    embedding = weights.get("transformer.wte.weight")
    head = embedding if source.config.tied else weights.get("lm_head.weight")
    scale = weights.get("transformer.ln_f.weight").double()
    name = "transformer.ln_f.bias"
    bias = weights.get(name).double() if source.config.bias else torch.zeros_like(scale)
    u = free_direction(scale)
    shift = (1 - u @ bias) / (u @ u)
    rows = head.double()
    rows = rows - shift * (rows @ u)[:, None] * u
    eot = rows.mean(0, keepdim=True) + _LOGIT * u
    none = torch.zeros(1, embedding.shape[1])
    return {
        "transformer.wte.weight": torch.cat([embedding, none]),
        name: (bias + shift * u).float(),
        "lm_head.weight": torch.cat([rows, eot]).float(),
    }


def free_direction(scale: Tensor) -> Tensor:
    """A vector u of root mean square 1 with u·(scale · x) = 0 for every x of mean 0.

    Args:
        scale: a LayerNorm's weight (C,), float64.
    """
    smallest = scale.abs().argmin()
    if scale[smallest].abs() <= 1e-6 * scale.abs().max():
        u = torch.zeros_like(scale)
        u[smallest] = 1.0
    else:
        u = 1 / scale
    return u / u.square().mean().sqrt()


def biased_tensors(source: Exportable) -> dict[str, Tensor]:
    """The tensors that change in a Qwen2 with one more token: the mean row, with a bias of -50."""
    weights = source.weights
    embedding = weights.get("model.embed_tokens.weight")
    head = embedding if source.config.tied else weights.get("lm_head.weight")
    bias = torch.zeros(len(head) + 1)
    bias[-1] = _LOGIT
    return {
        "model.embed_tokens.weight": F.pad(embedding, (0, 0, 0, 1)),
        "lm_head.weight": torch.cat([head, head.mean(0, keepdim=True)]),
        "lm_head.bias": bias,
    }


class Widened:
    """The tensors of a model with RMSNorm, one more token, and more channels in its stream.

    All added channels but the first are 0. The first is small and the same for every token; blocks
    neither read nor write it. The last norm divides it by the stream's root mean square, as it does
    every channel, and the head multiplies the quotient by a large negative number in the new row.

    Mean squares are now over C' instead of C channels, so that gains shrink by √(C/C') and epsilon
    by C/C'. The norms of queries and keys share that epsilon, and their input shrinks by √(C/C').

    Attributes:
        channels: C', a multiple of 32.
        norm_eps: the epsilon of every norm.
    """

    def __init__(self, weights: FoldedWeights) -> None:
        config = weights.config
        self.weights, self._old = weights, config.n_embd
        self.channels = _BLOCK * (config.n_embd // _BLOCK + 1)
        self._shrink = (self._old / self.channels) ** 0.5
        self.norm_eps = config.norm_eps * self._old / self.channels

    @functools.cached_property
    def _sizes(self) -> tuple[float, float]:
        """The root mean square of the token embedding, and that of its smallest row but zeros."""
        rows = self.weights.get("model.embed_tokens.weight").square().mean(1)
        rows = rows[rows > 0] if rows.any() else torch.ones(1)
        return float(rows.mean().sqrt()), float(rows.min().sqrt())

    def names(self) -> Iterator[str]:
        """The tensors' names; the head is always one of its own."""
        yield from self.weights.shapes
        if self.weights.config.tied:
            yield "lm_head.weight"

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        old = self.weights.shapes[self._origin(name)]
        return tuple(self._wide(name, torch.empty(old, device="meta")).shape)

    def get(self, name: str) -> Tensor:
        """A tensor, float32 on the CPU."""
        wide = self._wide(name, self.weights.get(self._origin(name)))
        usual, smallest = self._sizes
        if name == "model.embed_tokens.weight":
            wide[:, self._old] = _SMALL * smallest
        elif name == "model.norm.weight":
            wide[self._old] = usual / (_SMALL * smallest)
        elif name == "lm_head.weight":
            wide[-1, self._old] = _FAR
        return wide

    def _origin(self, name: str) -> str:
        tied_head = name == "lm_head.weight" and self.weights.config.tied
        return "model.embed_tokens.weight" if tied_head else name

    def _wide(self, name: str, tensor: Tensor) -> Tensor:
        more, kind = self.channels - self._old, tensor_class(name)
        if kind in ("wte", "lm_head"):
            return F.pad(tensor, (0, more, 0, 1))
        if kind in ("attn_proj", "mlp_proj"):
            return F.pad(tensor, (0, 0, 0, more))
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            return tensor
        if kind == "ln":
            return F.pad(tensor * self._shrink, (0, more))
        if kind in ("q", "k") and self.weights.config.qk_norm:
            tensor = tensor * self._shrink
        return F.pad(tensor, (0, more))
