"""Everything that fixes the shape and the function of a GPT."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from nanogpt_cli.model import limits

# Activations of an MLP with one matrix in front of them, and of one that multiplies their values
# with those of a second matrix (Shazeer 2020, arXiv:2002.05202).
PLAIN = ("gelu", "gelu_tanh", "relu", "relu2", "silu")
GATED = ("swiglu", "geglu")
NORMS = ("layer", "rms")
LAYER_NORM_EPS = 1e-5  # GPT-2's
POSITIONS = ("learned", "rope")


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

    The defaults are those of the recipe, whose keys have the same names. ``vocab_size`` counts the
    rows of the embedding, which may be padded beyond the tokenizer's vocabulary. In ``n_kv_head``,
    ``hidden`` and ``head_dim``, 0 stands for the usual value; that value itself is stored as 0, so
    that equal models have equal configurations.
    """

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    dropout: float
    bias: bool | Literal["qkv"]
    activation: str
    tied: bool = True
    multipliers: Multipliers = Multipliers()
    norm: str = "layer"
    norm_eps: float = LAYER_NORM_EPS
    position: str = "learned"
    rope_theta: float = 10000.0
    qk_norm: bool = False
    n_kv_head: int = 0
    hidden: int = 0
    head_dim: int = 0

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.head_dim and self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        for name, known in (
            ("activation", PLAIN + GATED), ("norm", NORMS), ("position", POSITIONS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}")
        if self.n_kv_head and self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}"
            )
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(f"position rope needs an even head size, not {self.head_size}")
        if self.n_kv_head == self.n_head:
            object.__setattr__(self, "n_kv_head", 0)
        if self.hidden == self._usual_hidden:
            object.__setattr__(self, "hidden", 0)
        if self.head_dim * self.n_head == self.n_embd:
            object.__setattr__(self, "head_dim", 0)

    @property
    def head_size(self) -> int:
        """Channels per head, D."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def q_size(self) -> int:
        """Channels of all queries of a position, and of what attention returns: H·D."""
        return self.n_head * self.head_size

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; each serves ``n_head / kv_heads`` query heads (GQA)."""
        return self.n_kv_head or self.n_head

    @property
    def kv_size(self) -> int:
        """Channels of all keys of a position, and of all values."""
        return self.kv_heads * self.head_size

    @property
    def attention_scale(self) -> float:
        """The factor on query·key."""
        attention = self.multipliers.attention
        return 1 / math.sqrt(self.head_size) if attention is None else attention

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies its activations with a second projection."""
        return self.activation in GATED

    @property
    def hidden_size(self) -> int:
        """Columns of the MLP's last matrix: 4C, or 8C/3 rounded up to 8 if it is gated."""
        return self.hidden or self._usual_hidden

    @property
    def _usual_hidden(self) -> int:
        return 8 * math.ceil(self.n_embd / 3) if self.gated else 4 * self.n_embd

    def widened(self, width: int, head_size: int = 0) -> GPTConfig:
        """This model with another width, for studies over widths.

        Heads keep their size (or have ``head_size``) and as many query heads as possible share keys
        and values as here. What has a size of its own, MLP or heads, keeps its proportion to the
        width.

        Args:
            width: channels, a multiple of the head size.
            head_size: channels per head; 0: as here.
        """
        if self.head_dim:
            n_head = max(1, width * self.n_head // self.n_embd)
        else:
            n_head = width // (head_size or self.head_size)
        shared = math.gcd(n_head, self.n_head // self.kv_heads)
        hidden = max(1, round(self.hidden * width / self.n_embd)) if self.hidden else 0
        return replace(self, n_embd=width, n_head=n_head, n_kv_head=n_head // shared, hidden=hidden)

    @property
    def naming(self) -> Literal["gpt2", "llama"]:
        """Whose names the parameters have: GPT-2's where its matrices hold them, else Llama's."""
        parts = (self.norm, self.position, self.qk_norm, self.bias == "qkv")
        heads = (self.kv_heads, self.head_dim)
        plain = parts == ("layer", "learned", False, False) and heads == (self.n_head, 0)
        return "gpt2" if plain else "llama"

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
                raise ValueError(f"{min(unknown)!r:.80} is not a key of a model's configuration")
        try:
            return cls(**{**values, "multipliers": Multipliers(**factors)})
        except TypeError as error:  # a key is missing
            raise ValueError(f"not a model configuration: {error}") from error
