"""The fast path of sampling: a GPT with a preallocated key/value cache on raw tensors.

Decoding one token reads every weight once and does little else, so what counts is to read no more
than that: no module call, one matrix-vector product per weight, keys and values copied in place,
logits of the last position alone. ``core.sampler`` holds the slow twin it is checked against.

Shapes: B rows in use, T = block_size, C channels, H heads, D = C/H, V rows of the embedding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt_cli.core.model import ACTIVATIONS, GPT, LAYER_NORM_EPS, Block


@dataclass(frozen=True, slots=True)
class Layer:
    """The tensors of one block, fetched once."""

    ln_1: tuple[Tensor, Tensor | None]
    c_attn: tuple[Tensor, Tensor | None]
    attn_proj: tuple[Tensor, Tensor | None]
    ln_2: tuple[Tensor, Tensor | None]
    c_fc: tuple[Tensor, Tensor | None]
    mlp_proj: tuple[Tensor, Tensor | None]


def _layer(block: Block, dtype: torch.dtype) -> Layer:
    modules = (
        block.ln_1, block.attn.c_attn, block.attn.c_proj, block.ln_2, block.mlp.c_fc,
        block.mlp.c_proj,
    )  # fmt: skip
    pairs = [
        (m.weight.detach().to(dtype), None if m.bias is None else m.bias.detach().to(dtype))
        for m in modules
    ]
    return Layer(*pairs)


class Decoder:
    """Logits of the next token for up to ``rows`` sequences, one cache slot each.

    Args:
        model: the weights; they are shared, not copied, unless ``dtype`` differs.
        rows: sequences decoded side by side.
        dtype: of weights and cache; the model's own when ``None``.
    """

    def __init__(self, model: GPT, rows: int, dtype: torch.dtype | None = None) -> None:
        config = model.config
        wte = model.transformer.wte.weight.detach()
        dtype = dtype or wte.dtype
        self.config = config
        self.layers = [_layer(block, dtype) for block in model.transformer.h]  # type: ignore[arg-type]
        self.wte = wte.to(dtype)
        self.wpe = model.transformer.wpe.weight.detach().to(dtype)
        self.ln_f = _layer_norm_pair(model, dtype)
        self.head = self.wte if config.tied else model.lm_head.weight.detach().to(dtype)
        self.activation: Callable[[Tensor], Tensor] = (
            _swiglu if config.activation == "swiglu" else ACTIVATIONS[config.activation]
        )
        # Key and value of a position lie together: one copy stores both. Zeros: what a mask hides
        # is still multiplied by 0, and left-over memory may hold NaN.
        shape = (config.n_layer, rows, 2, config.block_size, config.n_embd)
        self.cache = torch.zeros(shape, dtype=dtype, device=wte.device)
        self._views = self._slot_views()

    @property
    def cache_bytes(self) -> int:
        """Size of the preallocated cache."""
        return self.cache.numel() * self.cache.element_size()

    @torch.inference_mode()
    def prefill(self, slots: Sequence[int], windows: Sequence[Sequence[int]]) -> Tensor:
        """Read whole windows of equal length into cache slots; logits (len(slots), V) float32.

        Equal windows are computed once.
        """
        distinct = list(dict.fromkeys(tuple(window) for window in windows))
        which = [distinct.index(tuple(window)) for window in windows]
        idx = torch.tensor(distinct, device=self.cache.device)  # (N, n)
        n = idx.shape[1]
        if n > self.config.block_size:
            raise ValueError(f"window of {n} tokens, but block_size is {self.config.block_size}")
        x = self._embed(idx, torch.arange(n, device=idx.device))
        for number, layer in enumerate(self.layers):
            qkv = _linear(_norm(x, layer.ln_1), layer.c_attn)  # (N, n, 3C)
            q, k, v = qkv.chunk(3, dim=-1)
            for slot, row in zip(slots, which, strict=True):
                self.cache[number, slot, 0, :n] = k[row]
                self.cache[number, slot, 1, :n] = v[row]
            if number == len(self.layers) - 1:  # only the last position is read further
                q, x = q[:, -1:], x[:, -1:]
            x = self._finish_block(x, layer, self._attend(q, k, v, causal=q.shape[1] > 1))
        return self._logits(x[:, -1])[which]

    @torch.inference_mode()
    def step(self, slots: Sequence[int], tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Append one token to each slot; logits (len(slots), V) float32.

        Args:
            slots: distinct cache slots.
            tokens: the token of each.
            lengths: positions each already holds, < T.
        """
        if len(slots) == 1:
            return self._step_one(slots[0], tokens[0], lengths[0])
        return self._step_many(slots, tokens, lengths)

    def keep(self, slots: Sequence[int]) -> None:
        """Forget all but these slots; they become slots 0, 1, …"""
        self.cache = self.cache[:, list(slots)].contiguous()
        self._views = self._slot_views()

    def _step_one(self, slot: int, token: int, length: int) -> Tensor:
        # One-dimensional all the way, views made beforehand, the residual sum inside addmv: what
        # surrounds the matrix-vector products is a fifth of the time.
        config, n = self.config, length + 1
        C, H, scale = config.n_embd, config.n_head, config.attention_scale
        x = self._scaled(self.wte[token] + self.wpe[length])  # (C,)
        for layer, (stored, keys, values) in zip(self.layers, self._views[slot], strict=True):
            qkv = _vector(_norm(x, layer.ln_1), layer.c_attn)
            stored.select(1, length).copy_(qkv.narrow(0, C, 2 * C).view(2, C))
            y = F.scaled_dot_product_attention(
                qkv.narrow(0, 0, C).view(1, H, 1, C // H),
                keys.narrow(2, 0, n), values.narrow(2, 0, n), scale=scale,
            )  # fmt: skip
            x = self._join_vector(x, y.view(C), layer.attn_proj)
            hidden = self.activation(_vector(_norm(x, layer.ln_2), layer.c_fc))
            x = self._join_vector(x, hidden, layer.mlp_proj)
        logits = torch.mv(self.head, _norm(x, self.ln_f)).float()
        return self._output(logits).unsqueeze(0)

    def _join_vector(self, x: Tensor, branch: Tensor, pair: tuple[Tensor, Tensor | None]) -> Tensor:
        weight, bias = pair
        residual = self.config.multipliers.residual
        if bias is not None:
            x = torch.add(x, bias, alpha=residual)
        return torch.addmv(x, weight, branch, alpha=residual)

    def _slot_views(self) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
        """By slot and layer: what is stored (2, T, C), and keys and values (1, H, T, D) in it."""
        return [
            [(stored, *_heads(stored, self.config.n_head)) for stored in self.cache[:, slot]]
            for slot in range(self.cache.shape[1])
        ]

    def _step_many(
        self, slots: Sequence[int], tokens: Sequence[int], lengths: Sequence[int]
    ) -> Tensor:
        device = self.cache.device
        rows = torch.tensor(slots, device=device)
        position = torch.tensor(lengths, device=device)
        n = max(lengths) + 1
        whole = list(slots) == list(range(self.cache.shape[1]))
        mask = None
        if min(lengths) + 1 < n:
            mask = (torch.arange(n, device=device) <= position[:, None])[:, None, None]
        x = self._embed(
            torch.tensor(tokens, device=device)[:, None], position[:, None]
        )  # (B, 1, C)
        for number, layer in enumerate(self.layers):
            qkv = _linear(_norm(x, layer.ln_1), layer.c_attn)
            q, k, v = qkv.chunk(3, dim=-1)
            cache = self.cache[number]  # (rows, 2, T, C)
            cache[rows, :, position] = torch.cat((k, v), dim=1)
            past = cache[:, :, :n] if whole else cache[rows, :, :n]
            y = self._attend(q, past[:, 0], past[:, 1], mask=mask)
            x = self._finish_block(x, layer, y)
        return self._logits(x[:, -1])

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        """Attention over (B, n, C) tensors split into heads; (B, queries, C)."""
        B, queries, C = q.shape
        H = self.config.n_head
        q, k, v = (t.view(B, t.shape[1], H, C // H).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=self.config.attention_scale
        )
        return y.transpose(1, 2).reshape(B, queries, C)

    def _finish_block(self, x: Tensor, layer: Layer, y: Tensor) -> Tensor:
        x = self._join(x, _linear(y, layer.attn_proj))
        hidden = self.activation(_linear(_norm(x, layer.ln_2), layer.c_fc))
        return self._join(x, _linear(hidden, layer.mlp_proj))

    def _join(self, x: Tensor, branch: Tensor) -> Tensor:
        residual = self.config.multipliers.residual
        return x + (branch if residual == 1.0 else branch * residual)

    def _embed(self, idx: Tensor, positions: Tensor) -> Tensor:
        return self._scaled(self.wte[idx] + self.wpe[positions])

    def _scaled(self, x: Tensor) -> Tensor:
        factor = self.config.multipliers.embedding
        return x if factor == 1.0 else x * factor

    def _logits(self, x: Tensor) -> Tensor:
        return self._output(F.linear(_norm(x, self.ln_f), self.head).float())

    def _output(self, logits: Tensor) -> Tensor:
        factor = self.config.multipliers.output
        return logits if factor == 1.0 else logits * factor


def _layer_norm_pair(model: GPT, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    ln_f = model.transformer.ln_f
    return ln_f.weight.detach().to(dtype), None if ln_f.bias is None else ln_f.bias.detach().to(
        dtype
    )


def _heads(stored: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    T = stored.shape[1]
    keys, values = stored.view(2, 1, T, heads, -1).transpose(2, 3).unbind()
    return keys, values


def _norm(x: Tensor, pair: tuple[Tensor, Tensor | None]) -> Tensor:
    weight, bias = pair
    return torch.layer_norm(x, weight.shape, weight, bias, LAYER_NORM_EPS)


def _linear(x: Tensor, pair: tuple[Tensor, Tensor | None]) -> Tensor:
    return F.linear(x, pair[0], pair[1])


def _vector(x: Tensor, pair: tuple[Tensor, Tensor | None]) -> Tensor:
    weight, bias = pair
    return torch.mv(weight, x) if bias is None else torch.addmv(bias, weight, x)


def _swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def window_start(length: int, block_size: int, stride: int = 1) -> int:
    """Where the context of a sequence of ``length`` tokens starts.

    It advances in jumps of ``stride``, as late as possible: with 1 the context is always the last
    ``block_size`` tokens, as in nanoGPT; with more, a jump leaves ``block_size - stride`` or more
    and the positions keep their numbers until the next.
    """
    return max(0, math.ceil((length - block_size) / stride)) * stride


def best_threads(model: GPT, most: int) -> tuple[int, dict[int, float]]:
    """Thread count with the fastest decode step, and the seconds a step took with each tried.

    Two threads can lose to one by far when the cores are busy, so the choice is measured. One
    thread is kept unless more are at least a tenth faster. The current setting is restored.
    """
    decoder = Decoder(model, 1)
    decoder.prefill([0], [[0]])
    before, seconds = torch.get_num_threads(), {}
    candidates = [1 << n for n in range(most.bit_length()) if 1 << n <= most]
    try:
        for threads in candidates:
            torch.set_num_threads(threads)
            # The first steps wake the threads and the caches.
            seconds[threads] = min(_seconds(decoder, at) for at in range(1, 4))
    finally:
        torch.set_num_threads(before)
    best = min(candidates, key=lambda n: seconds[n] * (1.0 if n == 1 else 1.1))
    return best, seconds


def _seconds(decoder: Decoder, length: int) -> float:
    start = time.perf_counter()
    decoder.step([0], [0], [min(length, decoder.config.block_size - 1)])
    return time.perf_counter() - start
