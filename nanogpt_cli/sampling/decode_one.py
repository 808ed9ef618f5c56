"""Decode one token of one sequence on a CPU with preallocated buffers.

Apart from reading the weights, decoding a token takes little arithmetic but many small calls. So
buffers and their views are made once, products write into them, and biases and residual sums are
fused into the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt_cli.model.config import GPTConfig
from nanogpt_cli.sampling.int8 import Int8Matrix
from nanogpt_cli.sampling.matrix import Tiles
from nanogpt_cli.sampling.weights import AnyMatrix, Layer, LayerNorm, Norm, Weights

Product = Tiles | Int8Matrix


class Stored(NamedTuple):
    """A slot's cache in one layer: the stored tensor (2, G, T, D) and views of keys and values."""

    both: Tensor
    keys: Tensor  # (1, G, T, D)
    values: Tensor


class _Layer(NamedTuple):
    """The weights of a block in the order in which they are used."""

    ln_1: Norm
    c_attn: Product
    attn_proj: Product
    attn_bias: Tensor | None
    ln_2: Norm
    c_fc: Product
    mlp_proj: Product
    mlp_bias: Tensor | None
    gains: Tensor | None  # of the norms of queries and keys, (H + G, D)


def _layer(layer: Layer, config: GPTConfig) -> _Layer:
    attn, mlp = layer.attn_proj, layer.mlp_proj
    gains = None
    if layer.qk_norm is not None:
        q, k = (norm.weight for norm in layer.qk_norm)
        gains = torch.cat((q.expand(config.n_head, -1), k.expand(config.kv_heads, -1)))
    return _Layer(
        layer.ln_1, _product(layer.c_attn), _product(attn), attn.bias,
        layer.ln_2, _product(layer.c_fc), _product(mlp), mlp.bias, gains,
    )  # fmt: skip


def _product(matrix: AnyMatrix) -> Product:
    if matrix.product is None:
        raise ValueError("the weights are not packed")
    return matrix.product


class SingleStep:
    """The decoding step of a model for one sequence. Its buffers serve one call at a time.

    Args:
        weights: packed weights.

    Raises:
        ValueError: the weights are not packed.
    """

    def __init__(self, weights: Weights) -> None:
        config = weights.config
        C, H, G, D = config.n_embd, config.n_head, config.kv_heads, config.head_size
        self.weights = weights
        self.layers = [_layer(layer, config) for layer in weights.layers]
        self.head = _product(weights.head)
        self.embedding, self.residual = config.multipliers.embedding, config.multipliers.residual
        self.scale = config.attention_scale
        self.x = torch.empty(1, C)
        self.qkv = self.layers[0].c_attn.buffer()
        heads = self.qkv.view(-1)[: (H + 2 * G) * D].view(-1, D)
        self.compared = heads[: H + G]  # queries and keys
        self.row, self.column = self.compared[:, None], self.compared[..., None]
        self.squares = torch.empty(H + G, 1, 1)
        self.factors = self.squares[:, 0]
        self.query, self.key_value = heads[:H].view(1, G, H // G, D), heads[H:].view(2, G, D)
        self.eps = torch.full((1, 1, 1), config.norm_eps)
        self.turn, self.planes = weights.turn, self.compared
        if self.turn is not None:
            self.planes = torch.view_as_complex(self.compared.view(H + G, -1, 2))
        self.hidden = self.layers[0].c_fc.buffer(passed_on=True)
        rows = weights.layers[0].c_fc.shape[0]
        self.preact = self.hidden.view(1, -1)[:, :rows]
        self.gained = torch.empty_like(self.x)

    def __call__(self, token: int, length: int, cache: Sequence[Stored]) -> Tensor:
        """Append a token at position ``length``; returns logits (1, V), without multiplier."""
        weights, x, n = self.weights, self.x, length + 1
        if weights.wpe is None:
            x.copy_(weights.wte.narrow(0, token, 1))
        else:
            torch.add(weights.wte.narrow(0, token, 1), weights.wpe.narrow(0, length, 1), out=x)
        if self.embedding != 1.0:
            x.mul_(self.embedding)
        for layer, (both, keys, values) in zip(self.layers, cache, strict=True):
            layer.c_attn.scaled(*self._normed(layer.ln_1), self.qkv)
            self._compare(layer.gains, length)
            both.select(2, length).copy_(self.key_value)
            y = F.scaled_dot_product_attention(
                self.query, keys.narrow(2, 0, n), values.narrow(2, 0, n), scale=self.scale
            )
            self._join(y.view(1, -1), layer.attn_proj, layer.attn_bias)
            layer.c_fc.scaled(*self._normed(layer.ln_2), self.hidden)
            self._join(weights.activation(self.preact), layer.mlp_proj, layer.mlp_bias)
        logits = self.head.buffer()
        self.head.scaled(*self._normed(weights.ln_f), logits)
        return logits.view(1, -1)[:, : weights.head.shape[0]]

    def _normed(self, norm: Norm) -> tuple[Tensor, float]:
        """``norm`` of the stream as a row (1, C) and a factor for the product that it enters."""
        if isinstance(norm, LayerNorm):
            return norm(self.x), 1.0
        row = self.x[0]
        factor = (float(torch.dot(row, row)) / len(row) + norm.eps) ** -0.5
        return torch.mul(self.x, norm.weight, out=self.gained), factor

    def _compare(self, gains: Tensor | None, position: int) -> None:
        """Normalise and rotate queries and keys in place, where the model does that."""
        if gains is not None:
            D = self.compared.shape[1]
            torch.baddbmm(self.eps, self.row, self.column, alpha=1 / D, out=self.squares)
            self.squares.rsqrt_()
            self.compared.mul_(gains).mul_(self.factors)
        if self.turn is not None:
            self.planes.mul_(self.turn.select(0, position))

    def _join(self, branch: Tensor, product: Product, bias: Tensor | None) -> None:
        """Add a branch's product and bias to the residual stream."""
        if bias is not None:
            self.x.add_(bias, alpha=self.residual)
        product.join(branch, self.residual, self.x)
