"""The fast path of sampling: a GPT with a preallocated key/value cache on raw tensors.

Decoding one token is bound by reading every weight once, so nothing else is done: no module call,
one matrix-vector product per weight, keys and values copied in place, logits of the last position
only. ``sampling.sampler`` has the slow implementation that this one is checked against. A single
sequence with packed weights on a CPU takes the step of ``decode_one``; steps of all rows on a GPU
are replayed by ``decode_graph``.

Shapes: B rows in use, T = block_size, C channels, H heads, G heads of keys and values, D = head
size, V rows of the embedding. Keys are cached as they are compared: after their norm and rotation,
with the channels in the order of ``weights.pairs_together``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt_cli import host
from nanogpt_cli.errors import UserError
from nanogpt_cli.sampling.decode_graph import Replay
from nanogpt_cli.sampling.decode_one import SingleStep, Stored
from nanogpt_cli.sampling.weights import ASSUMED_MEMORY, Layer, Weights, rotated


class Decoder:
    """Logits of the next token for up to ``rows`` sequences, one cache slot each.

    Args:
        weights: packed or not; they may be packed between two steps.
        rows: number of sequences decoded in parallel.

    Raises:
        UserError: the cache for so many rows does not fit the memory.
    """

    def __init__(self, weights: Weights, rows: int) -> None:
        config = weights.config
        self.config, self.weights = config, weights
        # Ordered by head, so that attention reads each head's positions contiguously; key and value
        # of a position are adjacent, so that one copy stores both. It starts as zeros, because
        # masked positions are multiplied by 0 and uninitialised memory may hold NaN.
        shape = (
            len(weights.layers), rows, 2, config.kv_heads, config.block_size, config.head_size,
        )  # fmt: skip
        check_room(weights, rows)
        self.cache = torch.zeros(shape, dtype=weights.wte.dtype, device=weights.wte.device)
        self._views = self._slot_views()
        self._single: SingleStep | None = None
        self._replay: Replay | None = None

    @property
    def cache_bytes(self) -> int:
        """Bytes of the preallocated cache."""
        return self.cache.numel() * self.cache.element_size()

    @torch.inference_mode()
    def prefill(self, slots: Sequence[int], windows: Sequence[Sequence[int]]) -> Tensor:
        """Fill cache slots with windows of equal length; returns logits (len(slots), V) float32.

        Identical windows are computed once.
        """
        distinct = list(dict.fromkeys(tuple(window) for window in windows))
        which = [distinct.index(tuple(window)) for window in windows]
        idx = torch.tensor(distinct, device=self.cache.device)  # (N, n)
        n = idx.shape[1]
        if n > self.config.block_size:
            raise ValueError(f"window of {n} tokens, but block_size is {self.config.block_size}")
        positions = torch.arange(n, device=idx.device)
        x, turn = self._embed(idx, positions), self._turn(positions)
        for number, layer in enumerate(self.weights.layers):
            q, k, v = self._heads(layer, x, turn)  # (N, H, n, D), and G heads
            for slot, row in zip(slots, which, strict=True):
                self.cache[number, slot, 0, :, :n] = k[row]
                self.cache[number, slot, 1, :, :n] = v[row]
            if number == len(self.weights.layers) - 1:  # only the last position is read further
                q, x = q[:, :, -1:], x[:, -1:]
            y = F.scaled_dot_product_attention(
                q, k, v, is_causal=q.shape[2] > 1, scale=self.config.attention_scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )  # fmt: skip
            x = self._finish_block(x, layer, y)
        return self._logits(x[:, -1])[which]

    @torch.inference_mode()
    def step(self, slots: Sequence[int], tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Append one token to each slot; returns logits (len(slots), V) float32.

        Args:
            slots: distinct cache slots.
            tokens: the token to append to each slot.
            lengths: number of positions that each slot already holds, < T.
        """
        if len(slots) == 1 and self.weights.packed:
            if self._single is None:
                self._single = SingleStep(self.weights)
            return self._output(self._single(tokens[0], lengths[0], self._views[slots[0]]))
        whole = list(slots) == list(range(self.cache.shape[1]))
        if whole and replays(self.cache.device):
            if self._replay is None:
                self._replay = Replay(self._step_fixed, len(slots), self.cache.device)
            return self._replay(tokens, lengths)
        return self._step_many(slots, tokens, lengths, whole=whole)

    @torch.inference_mode()
    def extend(self, slot: int, tokens: Sequence[int], length: int) -> Tensor:
        """Append several tokens to one slot; returns the logits after each, (n, V) float32.

        Args:
            slot: a cache slot.
            tokens: n tokens.
            length: number of positions that the slot keeps; later ones are written over.
        """
        end = length + len(tokens)
        positions = torch.arange(length, end, device=self.cache.device)
        x = self._embed(torch.tensor([tokens], device=self.cache.device), positions)  # (1, n, C)
        # Of two dimensions, for with three PyTorch does not take its fused kernel.
        turn, mask = self._turn(positions), _mask(positions, end)[:, 0, 0]  # (n, end)
        for layer, cache in zip(self.weights.layers, self.cache[:, slot], strict=True):
            q, k, v = self._heads(layer, x, turn)  # (1, H, n, D), and G heads
            cache[:, :, length:end] = torch.cat((k, v))
            past = cache[:, None, :, :end]
            y = F.scaled_dot_product_attention(
                q, past[0], past[1], attn_mask=mask, scale=self.config.attention_scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )  # fmt: skip
            x = self._finish_block(x, layer, y)
        return self._logits(x[0])

    def stored(self, slot: int) -> list[Stored]:
        """The cache of a slot by layer."""
        return self._views[slot]

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots but these, which become slots 0, 1, …"""
        self.cache = self.cache[:, list(slots)].contiguous()
        self._views = self._slot_views()
        self._replay = None

    def _slot_views(self) -> list[list[Stored]]:
        """Views of the cache, indexed by slot and layer."""
        return [
            [Stored(both, both[None, 0], both[None, 1]) for both in self.cache[:, slot]]
            for slot in range(self.cache.shape[1])
        ]

    def _step_many(
        self, slots: Sequence[int], tokens: Sequence[int], lengths: Sequence[int], *, whole: bool
    ) -> Tensor:
        """Step of any subset of the slots, reading only the positions they hold."""
        device, n = self.cache.device, max(lengths) + 1
        positions = torch.tensor(lengths, device=device)
        mask = None if min(lengths) + 1 == n else _mask(positions, n)
        rows = None if whole else torch.tensor(slots, device=device)
        return self._advance(torch.tensor(tokens, device=device), positions, n, mask, rows)

    def _step_fixed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Step of all slots in constant shapes: attention reads the whole cache, masked."""
        T = self.config.block_size
        return self._advance(tokens, positions, T, _mask(positions, T), None)

    def _advance(
        self, tokens: Tensor, positions: Tensor, n: int, mask: Tensor | None, rows: Tensor | None
    ) -> Tensor:
        """Append tokens (B,) at positions (B,) to cache rows, reading the first n positions.

        ``rows`` are the slots; ``None`` stands for all of them.
        """
        every = torch.arange(len(tokens), device=tokens.device) if rows is None else rows
        x = self._embed(tokens[:, None], positions[:, None])  # (B, 1, C)
        turn = self._turn(positions[:, None, None])
        for layer, cache in zip(self.weights.layers, self.cache, strict=True):
            q, k, v = self._heads(layer, x, turn)  # (B, H, 1, D), and G heads
            cache[every, :, :, positions] = torch.stack((k[:, :, 0], v[:, :, 0]), dim=1)
            past = cache[:, :, :, :n] if rows is None else cache[rows, :, :, :n]
            # The queries of a group are so many rows that read the same keys: (B, G, H/G, D).
            y = F.scaled_dot_product_attention(
                q.view(len(q), k.shape[1], -1, q.shape[-1]),
                past[:, 0], past[:, 1], attn_mask=mask, scale=self.config.attention_scale,
            )  # fmt: skip
            x = self._finish_block(x, layer, y)
        return self._logits(x[:, -1])

    def _heads(self, layer: Layer, x: Tensor, turn: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, n, D), keys and values (B, G, n, D) of the stream (B, n, C)."""
        D, sizes = self.config.head_size, [self.config.q_size, *[self.config.kv_size] * 2]
        qkv = torch.split(layer.c_attn(layer.ln_1(x)), sizes, dim=-1)
        q, k, v = (t.view(*t.shape[:2], -1, D).transpose(1, 2) for t in qkv)
        if layer.qk_norm is not None:
            q, k = layer.qk_norm[0](q), layer.qk_norm[1](k)
        return rotated(q, turn), rotated(k, turn), v

    def _turn(self, positions: Tensor) -> Tensor | None:
        """The rotation at some positions, if the model has one."""
        turn = self.weights.turn
        return None if turn is None else turn[positions]

    def _finish_block(self, x: Tensor, layer: Layer, y: Tensor) -> Tensor:
        """The rest of a block, given attention's output ``y``, (B, H, n, D)."""
        if x.shape[1] > 1:
            y = y.transpose(1, 2)
        x = self._join(x, layer.attn_proj(y.reshape(*x.shape[:2], -1)))
        hidden = self.weights.activation(layer.c_fc(layer.ln_2(x)))
        return self._join(x, layer.mlp_proj(hidden))

    def _join(self, x: Tensor, branch: Tensor) -> Tensor:
        residual = self.config.multipliers.residual
        return x + (branch if residual == 1.0 else branch * residual)

    def _embed(self, idx: Tensor, positions: Tensor) -> Tensor:
        x = self.weights.wte[idx]
        if self.weights.wpe is not None:
            x = x + self.weights.wpe[positions]
        factor = self.config.multipliers.embedding
        return x if factor == 1.0 else x * factor

    def _logits(self, x: Tensor) -> Tensor:
        return self._output(self.weights.head(self.weights.ln_f(x)).float())

    def _output(self, logits: Tensor) -> Tensor:
        factor = self.config.multipliers.output
        return logits if factor == 1.0 else logits * factor


def check_room(weights: Weights, rows: int) -> None:
    """Refuse a cache that this machine cannot hold, before any large allocation.

    Raises:
        UserError: the cache takes more memory than the machine or the device has.
    """
    config, like = weights.config, weights.wte
    positions = len(weights.layers) * rows * config.block_size
    nbytes = 2 * positions * config.kv_size * like.element_size()
    on_cuda = like.device.type == "cuda"
    installed = host.installed_bytes(ASSUMED_MEMORY)
    there = torch.cuda.mem_get_info(like.device)[1] if on_cuda else installed
    if nbytes > there:
        raise UserError(
            f"a key/value cache for {rows} texts at once takes {nbytes / 1e9:,.1f} GB, "
            f"but there are only {there / 1e9:,.1f} GB of memory",
            "ask for fewer texts at a time",
        )


def replays(device: torch.device) -> bool:
    """Whether steps on this device should be replayed as a graph; see ``decode_graph``."""
    return device.type == "cuda"


def _mask(positions: Tensor, n: int) -> Tensor:
    """Attention mask (B, 1, 1, n): each row sees its positions up to the current one."""
    return (torch.arange(n, device=positions.device) <= positions[:, None])[:, None, None]


def window_start(length: int, block_size: int, stride: int = 1) -> int:
    """Index at which the context of a sequence of ``length`` tokens starts.

    It advances in jumps of ``stride``, as late as possible. With a stride of 1, the context is the
    last ``block_size`` tokens, as in nanoGPT; with more, at least ``block_size - stride`` tokens
    remain after a jump, and cached positions stay valid until the next one.
    """
    return max(0, math.ceil((length - block_size) / stride)) * stride
