"""A model's weights as decoding reads them: plain tensors, and a packed copy for single rows.

PyTorch's matrix-vector product on a CPU reads a weight (O, I) along several rows at once. If the
weight is not cached, it reaches a quarter of the memory bandwidth: 10 GB/s of 49 on one core of a
Zen 4 server (2026-11-24). Packed into tiles of 16 outputs, each contiguous (I, 16), the weight is
read by a batched product as one stream at 22 to 30 GB/s, and two threads can share the work.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_cli import host
from nanogpt_cli.model.gpt import (
    ACTIVATIONS,
    GPT,
    Block,
    GatedMLP,
    GPTConfig,
    LlamaBlock,
)
from nanogpt_cli.model.rms_norm import RMSNorm, rms_norm
from nanogpt_cli.model.rope import rotation

# Memory to assume of a machine that does not say how much it has.
ASSUMED_MEMORY = 1 << 32
TILE = 16  # outputs per tile; 8 to 32 are about equally fast, 4 and 48 half as fast
_PACKED_ROWS = 8  # with more rows the plain product is as fast


class Tiles(NamedTuple):
    """A weight (O, I) in zero-padded tiles (⌈O/16⌉, I, 16), and its bias (⌈O/16⌉, 1, 16)."""

    weight: Tensor
    bias: Tensor | None

    def apply(self, x: Tensor) -> Tensor:
        """Multiply the rows of ``x`` (B, I); returns (⌈O/16⌉, B, 16)."""
        x = x.expand(self.weight.shape[0], -1, -1)
        if self.bias is None:
            return torch.bmm(x, self.weight)
        return torch.baddbmm(self.bias, x, self.weight)

    def scaled(self, x: Tensor, factor: float, out: Tensor) -> None:
        """Multiply one row ``x`` (1, I) times ``factor``, into ``out`` (⌈O/16⌉, 1, 16)."""
        x = x.expand(self.weight.shape[0], -1, -1)
        if self.bias is None:
            torch.baddbmm(out, x, self.weight, beta=0, alpha=factor, out=out)
        else:
            torch.baddbmm(self.bias, x, self.weight, alpha=factor, out=out)


class Matrix:
    """A weight (O, I) and its bias: ``matrix(x)`` maps (..., I) to (..., O).

    Attributes:
        weight: shared with the model.
        bias: (O,) or ``None``.
        tiles: a packed copy of both, or ``None``.
    """

    __slots__ = ("bias", "tiles", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.tiles: Tiles | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply the rows of ``x``, with the tiles if there are few rows."""
        outputs, inputs = self.weight.shape
        rows = x.numel() // inputs
        if self.tiles is None or rows > _PACKED_ROWS:
            return F.linear(x, self.weight, self.bias)
        y = self.tiles.apply(x.reshape(rows, inputs)).transpose(0, 1).flatten(1)
        return y[:, :outputs].view(*x.shape[:-1], outputs)

    def plain(self) -> Matrix:
        """A matrix with the same tensors and no tiles."""
        return Matrix(self.weight, self.bias)

    @property
    def n_tiles(self) -> int:
        """Number of tiles that the outputs fill."""
        return -(-self.weight.shape[0] // TILE)

    def pack(self, room: Tensor) -> None:
        """Make the tiles; those of the weight are stored in ``room`` (n_tiles, I, 16)."""
        bias = None
        if self.bias is not None:
            bias = _tiled(self.bias[:, None], self.bias.new_empty(self.n_tiles, 1, TILE))
        self.tiles = Tiles(_tiled(self.weight, room), bias)


def _tiled(weight: Tensor, room: Tensor) -> Tensor:
    missing = -weight.shape[0] % TILE
    padded = F.pad(weight, (0, 0, 0, missing)) if missing else weight
    return room.copy_(padded.view(-1, TILE, weight.shape[1]).transpose(1, 2))


def _reserve(numbers: int) -> Tensor:
    """An uninitialised float32 tensor of ``numbers`` values, in huge pages where there are any.

    With 2 MiB pages the same product reads 31 to 34 GB/s instead of 25 to 31 (2026-11-24, Linux,
    Zen 4).
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(numbers)
    large = 2 << 20
    pages = mmap.mmap(-1, 4 * numbers + large, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    room = torch.frombuffer(pages, dtype=torch.float32)
    start = -room.data_ptr() % large // 4
    return room[start : start + numbers]


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """A LayerNorm over the last dimension."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise ``x``."""
        return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class RootMeanSquare:
    """An RMSNorm over the last dimension."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise ``x``."""
        return rms_norm(x, self.weight, self.eps)


Norm = LayerNorm | RootMeanSquare


class Layer(NamedTuple):
    """The weights of one block.

    Attributes:
        ln_1, ln_2: the norms in front of attention and MLP.
        c_attn: queries, keys and values (H·D + 2·G·D, C). With rotary positions, the two channels
            of a plane are neighbours in each head's queries and keys; see ``pairs_together``.
        c_fc: (hidden, C); of a gated MLP the gate above the other, (2·hidden, C).
        qk_norm: of the queries and of the keys of a head, if there are any.
    """

    ln_1: Norm
    c_attn: Matrix
    attn_proj: Matrix
    ln_2: Norm
    c_fc: Matrix
    mlp_proj: Matrix
    qk_norm: tuple[Norm, Norm] | None = None

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The matrices in the order in which they are read."""
        return self.c_attn, self.attn_proj, self.c_fc, self.mlp_proj


@dataclass(frozen=True)
class Weights:
    """All weights of a model that decoding reads.

    Attributes:
        config: the model's configuration.
        wte: token embedding (V, C).
        wpe: position embedding (T, C), or ``None``.
        turn: the rotation at each of T positions as complex numbers (T, D/2), or ``None``.
        layers: the weights of the blocks.
        ln_f: the last norm.
        head: the output projection (V, C).
        activation: activation function of the feed-forward network.
    """

    config: GPTConfig
    wte: Tensor
    wpe: Tensor | None
    turn: Tensor | None
    layers: tuple[Layer, ...]
    ln_f: Norm
    head: Matrix
    activation: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, model: GPT, dtype: torch.dtype | None = None) -> Weights:
        """The weights of ``model``, shared with it unless ``dtype`` differs from the model's.

        What decoding reads side by side but a model with Llama's names holds apart is copied:
        queries, keys and values, and the gate of an MLP with what it multiplies.
        """
        config = model.config
        wte = _taken(model.token_table.weight, dtype)
        wpe = model.position_table
        return cls(
            config=config,
            wte=wte,
            wpe=None if wpe is None else _taken(wpe.weight, dtype),
            turn=_turn(config, wte.device),
            layers=tuple(
                _layer(block, dtype)
                if isinstance(block, Block)
                else _llama_layer(block, config, dtype)  # type: ignore[arg-type]
                for block in model.blocks
            ),
            ln_f=_norm(model.last_norm, dtype),
            head=Matrix(wte if config.tied else _taken(model.lm_head.weight, dtype), None),
            activation=_activation(config),
        )

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Every matrix that is read whole for each decoded token."""
        return (*(m for layer in self.layers for m in layer.matrices), self.head)

    @property
    def packed(self) -> bool:
        """Whether all tiles exist. It runs at every step and checks only the last one made."""
        return self.head.tiles is not None

    @property
    def packed_bytes(self) -> int:
        """Bytes that the tiles take."""
        return sum(m.tiles.weight.nbytes for m in self.matrices if m.tiles is not None)

    def can_pack(self) -> bool:
        """Whether tiles are useful here and take less than a quarter of the machine's memory."""
        plain = self.wte.device.type == "cpu" and self.wte.dtype == torch.float32
        if not plain or self.config.n_embd % TILE:
            return False
        weights = sum(m.weight.nbytes for m in self.matrices)
        return 4 * weights < host.installed_bytes(ASSUMED_MEMORY)

    def pack(self) -> None:
        """Make the missing tiles, which take as much memory as the weights."""
        missing = [matrix for matrix in self.matrices if matrix.tiles is None]
        sizes = [matrix.n_tiles * TILE * matrix.weight.shape[1] for matrix in missing]
        rooms = torch.split(_reserve(sum(sizes)), sizes)
        for matrix, room in zip(missing, rooms, strict=True):
            matrix.pack(room.view(matrix.n_tiles, -1, TILE))

    def first(self, nbytes: int) -> Weights:
        """A smaller model of the first layers, of at least ``nbytes``, and a head of 256 tokens.

        It shares the tensors but has its own tiles.
        """
        size = sum(m.weight.nbytes for m in self.layers[0].matrices)
        layers = tuple(
            layer._replace(
                c_attn=layer.c_attn.plain(), attn_proj=layer.attn_proj.plain(),
                c_fc=layer.c_fc.plain(), mlp_proj=layer.mlp_proj.plain(),
            )
            for layer in self.layers[: math.ceil(nbytes / size)]
        )  # fmt: skip
        return replace(self, layers=layers, head=Matrix(self.head.weight[:256], None))


def _taken(parameter: Tensor, dtype: torch.dtype | None) -> Tensor:
    return parameter.detach().to(dtype or parameter.dtype)


def _optional(parameter: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    return None if parameter is None else _taken(parameter, dtype)


def _norm(module: nn.Module, dtype: torch.dtype | None) -> Norm:
    if isinstance(module, RMSNorm):
        return RootMeanSquare(_taken(module.weight, dtype), module.eps)
    assert isinstance(module, nn.LayerNorm)
    return LayerNorm(_taken(module.weight, dtype), _optional(module.bias, dtype), module.eps)


def _turn(config: GPTConfig, device: torch.device) -> Tensor | None:
    if config.position == "learned":
        return None
    positions = torch.arange(config.block_size, device=device)
    return torch.complex(*rotation(positions, config.head_size, config.rope_theta))


def pairs_together(x: Tensor, head_size: int) -> Tensor:
    """The rows of ``x`` (heads·D, ...) with rows i and i + D/2 of a head next to each other.

    Two channels that a rotation mixes are then the parts of one complex number, and rotating is
    one product. Scores are sums over the channels, whose order does not matter.
    """
    halves = x.reshape(-1, 2, head_size // 2, *x.shape[1:])
    return halves.transpose(1, 2).flatten(0, 2)


def rotated(x: Tensor, by: Tensor | None) -> Tensor:
    """Rotate (..., n, D), neighbours together, by complex (..., n, D/2); ``None`` does nothing."""
    if by is None:
        return x
    planes = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(planes * by).flatten(-2).to(x.dtype)


def _layer(block: Block, dtype: torch.dtype | None) -> Layer:
    c_attn, attn_proj, c_fc, mlp_proj = (
        Matrix(_taken(m.weight, dtype), _optional(m.bias, dtype))
        for m in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
    )
    return Layer(
        _norm(block.ln_1, dtype), c_attn, attn_proj, _norm(block.ln_2, dtype), c_fc, mlp_proj
    )


def _llama_layer(block: LlamaBlock, config: GPTConfig, dtype: torch.dtype | None) -> Layer:
    attn, mlp = block.self_attn, block.mlp
    wide = (mlp.gate_proj, mlp.up_proj) if isinstance(mlp, GatedMLP) else (mlp.up_proj,)
    c_attn = _side_by_side(dtype, attn.q_proj, attn.k_proj, attn.v_proj)
    norms = None
    if isinstance(attn.q_norm, RMSNorm):
        norms = _norm(attn.q_norm, dtype), _norm(attn.k_norm, dtype)
    if config.position == "rope":
        c_attn, norms = _paired(c_attn, config), norms and _paired_gains(*norms)
    return Layer(
        _norm(block.input_layernorm, dtype),
        c_attn,
        _side_by_side(dtype, attn.o_proj),
        _norm(block.post_attention_layernorm, dtype),
        _side_by_side(dtype, *wide),
        _side_by_side(dtype, mlp.down_proj),
        norms,
    )


def _paired(c_attn: Matrix, config: GPTConfig) -> Matrix:
    compared = config.q_size + config.kv_size

    def paired(rows: Tensor) -> Tensor:
        return torch.cat((pairs_together(rows[:compared], config.head_size), rows[compared:]))

    bias = None if c_attn.bias is None else paired(c_attn.bias)
    return Matrix(paired(c_attn.weight), bias)


def _paired_gains(*norms: Norm) -> tuple[Norm, Norm]:
    q, k = (replace(n, weight=pairs_together(n.weight, len(n.weight))) for n in norms)
    return q, k


def _side_by_side(dtype: torch.dtype | None, *modules: nn.Linear) -> Matrix:
    """The matrices of some layers, all with or all without bias, on top of each other."""
    weights = [_taken(m.weight, dtype) for m in modules]
    biases = [_taken(m.bias, dtype) for m in modules if m.bias is not None]
    if len(modules) == 1:
        return Matrix(weights[0], biases[0] if biases else None)
    return Matrix(torch.cat(weights), torch.cat(biases) if biases else None)


def _activation(config: GPTConfig) -> Callable[[Tensor], Tensor]:
    """From what ``c_fc`` returns to what ``mlp_proj`` is given."""
    activation = ACTIVATIONS[config.activation]
    if not config.gated:
        return activation

    def gated(x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return activation(gate) * value

    return gated
