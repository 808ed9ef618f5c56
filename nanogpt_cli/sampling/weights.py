"""A model's weights as decoding reads them, whatever the names of its modules.

Its matrices are shared with the model, with a packed copy for single rows (``sampling.matrix``), or
rounded to eight bits (``sampling.int8``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nanogpt_cli import host
from nanogpt_cli.machine import products
from nanogpt_cli.model.gpt import GPT, Block, GPTConfig, LlamaBlock
from nanogpt_cli.model.mlp import ACTIVATIONS, GatedMLP
from nanogpt_cli.model.rms_norm import RMSNorm, rms_norm
from nanogpt_cli.model.rope import rotation
from nanogpt_cli.sampling.int8 import Int8Matrix, rounded
from nanogpt_cli.sampling.matrix import TILE, Matrix, reserve
from nanogpt_cli.sampling.pace import Pace

# Memory to assume of a machine that does not say how much it has.
ASSUMED_MEMORY = 1 << 32


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
AnyMatrix = Matrix | Int8Matrix


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
    c_attn: AnyMatrix
    attn_proj: AnyMatrix
    ln_2: Norm
    c_fc: AnyMatrix
    mlp_proj: AnyMatrix
    qk_norm: tuple[Norm, Norm] | None = None

    @property
    def matrices(self) -> tuple[AnyMatrix, ...]:
        """The matrices in the order in which they are read."""
        return self.c_attn, self.attn_proj, self.c_fc, self.mlp_proj

    def changed(self, change: Callable[[AnyMatrix], AnyMatrix]) -> Layer:
        """The block with other matrices."""
        return self._replace(
            c_attn=change(self.c_attn), attn_proj=change(self.attn_proj),
            c_fc=change(self.c_fc), mlp_proj=change(self.mlp_proj),
        )  # fmt: skip


class Draft(NamedTuple):
    """A faster model that proposes tokens, and the times that decide how many."""

    weights: Weights
    pace: Pace


@dataclass
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
        draft: the model in eight bits, where it makes decoding faster.
    """

    config: GPTConfig
    wte: Tensor
    wpe: Tensor | None
    turn: Tensor | None
    layers: tuple[Layer, ...]
    ln_f: Norm
    head: AnyMatrix
    activation: Callable[[Tensor], Tensor]
    draft: Draft | None = None

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
    def matrices(self) -> tuple[AnyMatrix, ...]:
        """Every matrix that is read whole for each decoded token."""
        return (*(m for layer in self.layers for m in layer.matrices), self.head)

    @property
    def packed(self) -> bool:
        """Whether single rows have products of their own; it runs at every step and asks one."""
        return self.head.product is not None

    @property
    def packed_bytes(self) -> int:
        """Bytes that the packed copies and the draft take."""
        own = sum(m.copied_bytes for m in self.matrices)
        return own + (self.draft.weights.packed_bytes if self.draft else 0)

    @property
    def int8(self) -> bool:
        """Whether the matrices are rounded to eight bits."""
        return isinstance(self.head, Int8Matrix)

    def can_pack(self) -> bool:
        """Whether tiles are useful here and take less than a quarter of the machine's memory."""
        plain = self.wte.device.type == "cpu" and self.wte.dtype == torch.float32
        if not plain or self.int8 or self.config.n_embd % TILE:
            return False
        return self._is_small(4)

    def _is_small(self, times: int) -> bool:
        """Whether so many times the matrices are less than the memory this process may use."""
        weights = sum(m.nbytes for m in self.matrices)
        room = host.installed_bytes(ASSUMED_MEMORY)
        if group := host.control_group():
            room = min(room, group.limit)
        return times * weights < room

    def pack(self) -> None:
        """Make the missing tiles, which take as much memory as the weights.

        Where there is room for as much again, copies for more than one row are made, too.
        """
        missing = [m for m in self.matrices if isinstance(m, Matrix) and m.tiles is None]
        sizes = [matrix.n_tiles * TILE * matrix.weight.shape[1] for matrix in missing]
        rooms = torch.split(reserve(sum(sizes)), sizes)
        twice = self._is_small(8)
        for matrix, room in zip(missing, rooms, strict=True):
            matrix.pack(room.view(matrix.n_tiles, -1, TILE))
            if twice:
                matrix.ordered = products.ordered(matrix.weight)

    def first(self, nbytes: int) -> Weights:
        """A smaller model of the first layers, of at least ``nbytes``, and a head of 256 tokens.

        It shares the tensors but has its own tiles.
        """
        size = sum(m.nbytes for m in self.layers[0].matrices)
        chosen = self.layers[: math.ceil(nbytes / size)]
        layers = tuple(layer.changed(lambda m: m.plain()) for layer in chosen)
        return replace(self, layers=layers, head=self.head.plain(256), draft=None)

    def in_int8(self) -> Weights:
        """The same model with every matrix rounded to eight bits; see ``sampling.int8``."""
        layers = tuple(layer.changed(_in_int8) for layer in self.layers)
        return replace(self, layers=layers, head=_in_int8(self.head), draft=None)

    def dequantised(self) -> Weights:
        """Rounded matrices as plain float32 ones: the slow twin of an ``in_int8``."""
        layers = tuple(layer.changed(_dequantised) for layer in self.layers)
        return replace(self, layers=layers, head=_dequantised(self.head))


def _in_int8(matrix: AnyMatrix) -> AnyMatrix:
    return rounded(matrix.weight, matrix.bias) if isinstance(matrix, Matrix) else matrix


def _dequantised(matrix: AnyMatrix) -> AnyMatrix:
    return Matrix(matrix.dequantised(), matrix.bias) if isinstance(matrix, Int8Matrix) else matrix


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
