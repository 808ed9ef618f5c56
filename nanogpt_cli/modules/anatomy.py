"""What an inspection knows of a module: its residual stream and the roles of its parameters.

``stream.py`` finds it by watching one forward pass. Everything that judges or predicts a module of
another architecture reads this description and never a parameter's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

# The role of a matrix or vector. The first eight are those of GPT-2 (``schemes.CLASSES``). A gated
# MLP has ``gate`` (through the activation) and ``fc`` (multiplied with it).
ROLES = (
    "wte", "wpe", "lm_head", "q", "k", "v", "attn_proj", "fc", "mlp_proj",
    "gate", "router", "norm", "qk_norm", "bias", "scale", "other",
)  # fmt: skip
# Roles of matrices inside blocks.
MATRICES = ("q", "k", "v", "attn_proj", "gate", "fc", "mlp_proj", "router")


@dataclass(frozen=True)
class Part:
    """One matrix or vector inside a parameter; a fused parameter holds several.

    Attributes:
        parameter: name of the parameter, as ``named_parameters`` of the module gives it.
        role: one of ``ROLES``.
        layer: index of its block; -1 outside the blocks.
        rows: output features that belong to this part; ``None`` for all.
        transposed: whether the parameter is stored as (in, out), as in Hugging Face's ``Conv1D``.
        tag: distinguishes parts of one parameter in keys, such as ``q``; empty for a whole one.
    """

    parameter: str
    role: str
    layer: int = -1
    rows: Tensor | None = field(default=None, compare=False)
    transposed: bool = False
    tag: str = ""

    @property
    def key(self) -> str:
        """A unique name: the parameter's, with ``/q`` and the like for a piece of it."""
        return f"{self.parameter}/{self.tag}" if self.tag else self.parameter

    def of(self, parameter: Tensor) -> Tensor:
        """This part's values, (out, in) or (size,), of the whole parameter.

        A stack of experts (E, out, in) becomes (E·out, in).
        """
        values = parameter.detach()
        if self.transposed:
            values = values.transpose(-1, -2)
        if values.dim() > 2:
            values = values.flatten(0, -2)
        return values if self.rows is None else values[self.rows]


@dataclass(frozen=True)
class Write:
    """One addition to the residual stream.

    Attributes:
        layer: index of the block; -1 before the first.
        kind: ``embed`` (the stream's first value or a sum into it), ``attn``, ``mlp``, ``both``
            (attention and MLP summed before they are added), ``other``.
        module: path of the module that computed what is added.
    """

    layer: int
    kind: str
    module: str


@dataclass(frozen=True)
class Anatomy:
    """A module as an inspection sees it.

    Attributes:
        width: channels of the residual stream.
        blocks: paths of the repeated blocks, in the order in which they run.
        writes: additions to the stream in the order in which they happen.
        norms: paths of the modules that read the stream and normalise it, in order; empty strings
            for blocks that normalise in a function.
        parts: every parameter, by role.
        tied: whether head and token embedding are one tensor.
    """

    width: int
    blocks: tuple[str, ...]
    writes: tuple[Write, ...]
    norms: tuple[str, ...]
    parts: tuple[Part, ...]
    tied: bool

    def of_role(self, *roles: str) -> list[Part]:
        """The parts of these roles."""
        return [part for part in self.parts if part.role in roles]
