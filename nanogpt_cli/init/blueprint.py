"""What the mean-field theory knows of a decoder: which parts it is made of, and their moments.

GPT-2 is one case (``Blueprint.of``); ``modules.blueprint`` reads those of other architectures.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from nanogpt_cli.init.drawing import matrices_of, placed
from nanogpt_cli.model.config import GPTConfig
from nanogpt_cli.model.parameters import block_shapes, shapes, tensor_class
from nanogpt_cli.schemes import Scheme, positions
from nanogpt_cli.schemes.laws import Law

# Where normalisation stands: before each branch; after each branch, before the addition; both; or
# after the addition, as in the first transformers.
Placement = Literal["pre", "branch", "peri", "post"]


@dataclass(frozen=True)
class Variances:
    """Second moments of one block's weights: E[w²] of each matrix, bias and norm gain.

    A gain includes constant factors on the normalised stream, such as LayerNorm Scaling's 1/√l (Sun
    et al. 2502.05795). ``gain_1`` and ``gain_2`` belong to the norms before attention and MLP,
    ``after_1`` and ``after_2`` to those behind them. ``gate`` is the matrix of a gated MLP whose
    output goes through the activation. Of experts, it is the mean over all.
    """

    q: float
    k: float
    v: float
    attn_proj: float
    fc: float
    mlp_proj: float
    gain_1: float = 1.0
    gain_2: float = 1.0
    bias_q: float = 0.0
    bias_k: float = 0.0
    bias_v: float = 0.0
    bias_attn: float = 0.0
    bias_fc: float = 0.0
    bias_mlp: float = 0.0
    gate: float = 0.0
    bias_gate: float = 0.0
    router: float = 0.0
    gain_q: float = 1.0
    gain_k: float = 1.0
    after_1: float = 1.0
    after_2: float = 1.0

    @classmethod
    def of(cls, config: GPTConfig, scheme: Scheme, layer: int) -> Variances:
        """Compute them from the laws of block ``layer`` of our GPT."""
        found: dict[str, float] = {}
        for name in block_shapes(config, [layer]):
            module, _, leaf = name.partition(f".{layer}.")[2].rpartition(".")
            for spec in matrices_of(name, config, scheme):
                found |= dict.fromkeys(
                    _moments_in(module, leaf, spec.tensor_class), spec.mean_square
                )
        found.setdefault("gate", found["fc"])  # GPT-2's naming has both in one parameter
        found.setdefault("bias_gate", found.get("bias_fc", 0.0))
        return cls(**found)


# Names of the moments that a module's gain or bias gives.
_GAINS = {
    "ln_1": "gain_1", "input_layernorm": "gain_1",
    "ln_2": "gain_2", "post_attention_layernorm": "gain_2",
    "self_attn.q_norm": "gain_q", "self_attn.k_norm": "gain_k",
}  # fmt: skip
_BIASES = {
    "attn.c_attn": ("bias_q", "bias_k", "bias_v"),
    "self_attn.q_proj": ("bias_q",), "self_attn.k_proj": ("bias_k",),
    "self_attn.v_proj": ("bias_v",), "attn.c_proj": ("bias_attn",),
    "self_attn.o_proj": ("bias_attn",), "mlp.c_fc": ("bias_fc",), "mlp.up_proj": ("bias_fc",),
    "mlp.gate_proj": ("bias_gate",), "mlp.c_proj": ("bias_mlp",), "mlp.down_proj": ("bias_mlp",),
}  # fmt: skip


def _moments_in(module: str, leaf: str, kind: str) -> tuple[str, ...]:
    """Fields of ``Variances`` that a matrix or vector of a block gives."""
    if leaf == "bias":
        return _BIASES.get(module, ())  # those of norms are zero at the start
    return (_GAINS.get(module, kind),)


@dataclass(frozen=True)
class Comparison:
    """Queries and keys that read the channels of the position alone (``schemes.positions``).

    Attributes:
        q, k: laws of the two matrices, without chance.
        heads: how many heads share these channels.
        channels: how many there are.
    """

    q: Law
    k: Law
    heads: int
    channels: int

    @classmethod
    def of(cls, config: GPTConfig, scheme: Scheme, layer: int) -> Comparison | None:
        """That of a block of our GPT; ``None`` if its queries or keys are drawn."""
        laws = {
            spec.tensor_class: spec.law
            for name in block_shapes(config, [layer])
            if tensor_class(name) in ("qkv", "q", "k")
            for spec in matrices_of(name, config, scheme)
        }
        if not (laws["q"].placed and laws["k"].placed):
            return None
        n = min(positions.channels(config.head_size), config.n_embd)
        return cls(laws["q"], laws["k"], config.n_head, n)

    def weights(self, size: int) -> tuple[Tensor, Tensor]:
        """What makes queries and keys of the channels, (heads, size, channels) each."""
        shape = (self.heads * size, self.channels)
        q, k = (placed(law, shape).float().view(self.heads, size, -1) for law in (self.q, self.k))
        return q, k


@dataclass(frozen=True)
class Layer:
    """One block.

    Attributes:
        moments: second moments of its weights.
        attention_scale: factor on query·key.
        rope: angles in radians by which a step of one position rotates pairs of a head's channels
            (Su et al. 2104.09864), at most half as many as the head has channels; the other
            channels stay as they are. Empty for a block without rotations.
        window: positions that a query sees, itself included; 0 for all of the past.
        carry, first: before the block the stream x becomes carry·x + first·x₀, with x₀ the
            embedding.
        comparison: how queries and keys compare positions; ``None`` where they are drawn.
    """

    moments: Variances
    attention_scale: float
    rope: tuple[float, ...] = ()
    window: int = 0
    carry: float = 1.0
    first: float = 0.0
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Blueprint:
    """A decoder as the recursion sees it.

    Attributes:
        width: channels of the residual stream.
        n_head, n_kv_head, head_size: query heads, key and value heads, channels of each.
        hidden: channels of the MLP's hidden layer.
        vocab: rows of the head.
        layers: the blocks.
        wte, wpe: E[w²] of token and position table; 0 for a model without position table.
        placed_wpe: the law of a position table that is not drawn.
        head: E[w²] of the head, the table's if tied.
        final_gain: E[g²] of the final norm.
        activation: a key of ``kernels.KERNELS`` other than ``swiglu``.
        gated: whether the activation's output is multiplied by a second projection.
        norm: ``layer`` or ``rms`` (Zhang & Sennrich 1910.07467), or ``none`` (an ablation). The
            recursion treats the first two alike: random weights leave the mean over channels at
            1/√width of the size.
        eps: what the norms add to the variance.
        placement: where they stand.
        embedding_norm, final_norm: whether embedding and last stream are normalised.
        qk_norm: whether queries and keys are.
        parallel: whether attention and MLP read the same stream, and are added together.
        tied: whether the head is the token embedding.
        embedding, residual, output: multipliers of embedding, branches and logits.
        skip: factor on the stream at each addition (DeepNorm's α, Wang et al. 2203.00555).
        experts, active: experts of an MLP and how many of them compute a token; 0 without experts.
        shares_sum: whether the weights of a token's experts sum to 1 (a softmax over the active
            ones) or are those of a softmax over all.
        padding: a token whose row of the table is zero (``nn.Embedding``'s ``padding_idx``); -1 for
            none. The other rows have E[w²] = ``wte``.
        score_cap, logit_cap: c in c·tanh(x/c) on scores and logits; 0 for none. The recursion
            leaves both out: the caller checks that they do not matter.
    """

    width: int
    n_head: int
    n_kv_head: int
    head_size: int
    hidden: int
    vocab: int
    layers: tuple[Layer, ...] = field(repr=False)
    wte: float
    head: float
    activation: str
    wpe: float = 0.0
    placed_wpe: Law | None = None
    final_gain: float = 1.0
    gated: bool = False
    norm: Literal["layer", "rms", "none"] = "rms"
    eps: float = 1e-6
    placement: Placement = "pre"
    embedding_norm: bool = False
    final_norm: bool = True
    qk_norm: bool = False
    parallel: bool = False
    tied: bool = False
    embedding: float = 1.0
    residual: float = 1.0
    output: float = 1.0
    skip: float = 1.0
    experts: int = 0
    active: int = 0
    shares_sum: bool = True
    padding: int = -1
    score_cap: float = 0.0
    logit_cap: float = 0.0

    @property
    def by_position(self) -> frozenset[int]:
        """The blocks whose heads look for positions by design."""
        return frozenset(n for n, layer in enumerate(self.layers) if layer.comparison)

    @classmethod
    def of(cls, config: GPTConfig, scheme: Scheme, *, layer_norm: bool = True) -> Blueprint:
        """That of our GPT; ``layer_norm=False`` leaves every LayerNorm out (an ablation)."""
        factors, rope = config.multipliers, ()
        if config.position == "rope":
            D = config.head_size
            rope = tuple(config.rope_theta ** (-n / D) for n in range(0, D, 2))
        outside = shapes(config).keys() - block_shapes(config, range(config.n_layer)).keys()
        names = {tensor_class(name): name for name in outside}
        wte = moment(names["wte"], config, scheme)
        return cls(
            width=config.n_embd,
            n_head=config.n_head,
            n_kv_head=config.kv_heads,
            head_size=config.head_size,
            hidden=config.hidden_size,
            vocab=config.vocab_size,
            layers=tuple(_layer(config, scheme, layer, rope) for layer in range(config.n_layer)),
            wte=wte,
            head=wte if config.tied else moment(names["lm_head"], config, scheme),
            wpe=moment(names["wpe"], config, scheme) if "wpe" in names else 0.0,
            placed_wpe=_placed_law(names.get("wpe"), config, scheme),
            final_gain=moment(names["ln"], config, scheme),
            activation=_GATES.get(config.activation, config.activation),
            gated=config.gated,
            norm=_NORMS[config.norm] if layer_norm else "none",
            eps=config.norm_eps,
            qk_norm=config.qk_norm,
            tied=config.tied,
            embedding=factors.embedding,
            residual=factors.residual,
            output=factors.output,
        )


# The activation of a gated MLP, and the norms in the words of ``Blueprint``.
_GATES = {"swiglu": "silu", "geglu": "gelu"}
_NORMS: dict[str, Literal["layer", "rms"]] = {"layer": "layer", "rms": "rms"}


def _layer(config: GPTConfig, scheme: Scheme, layer: int, rope: tuple[float, ...]) -> Layer:
    moments = Variances.of(config, scheme, layer)
    comparison = Comparison.of(config, scheme, layer)
    if comparison:  # gradients reach the rows that are not zero
        rows = config.head_size / comparison.channels
        moments = replace(moments, q=moments.q * rows, k=moments.k * rows)
    return Layer(moments, config.attention_scale, rope, comparison=comparison)


def _placed_law(name: str | None, config: GPTConfig, scheme: Scheme) -> Law | None:
    """The law of a parameter outside the blocks, if it leaves nothing to chance."""
    if name is None:
        return None
    (spec,) = matrices_of(name, config, scheme)
    return spec.law if spec.law.placed else None


def moment(name: str, config: GPTConfig, scheme: Scheme) -> float:
    """E[w²] of a parameter outside the blocks."""
    (spec,) = matrices_of(name, config, scheme)
    return spec.mean_square
