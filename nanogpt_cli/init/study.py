"""Comparison of several initialisations: schemes, ablations, depths and widths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from torch import Tensor

from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.init.drawing import configure
from nanogpt_cli.init.exponents import Exponents, exponents
from nanogpt_cli.init.inspect import measure
from nanogpt_cli.init.signals import Signals
from nanogpt_cli.init.sources import Drawn
from nanogpt_cli.init.theory import expect, random_tokens
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.schemes import Scheme

ABLATIONS = {
    "residual-scale": "residual projections get the law of the MLP's first matrix",
    "tying": "untie the head (or tie it)",
    "ln": "remove every LayerNorm",
    "bias": "remove all biases (or add them)",
}
DEPTHS = (1, 2, 4, 8, 12, 24, 36, 48, 96)
WIDTHS = (64, 128, 256, 384, 512, 768, 1024, 1600, 2048, 4096)
# The cost of theory grows with the square of this; more tokens change growth by a few percent.
TOKENS = 64


@dataclass(frozen=True)
class Variant:
    """One row of a comparison.

    Attributes:
        name: label of the row.
        config: the model, with the scheme's multipliers.
        scheme: the laws of its weights.
        layer_norm: False leaves every LayerNorm out.
    """

    name: str
    config: GPTConfig
    scheme: Scheme
    layer_norm: bool = True

    def expected(self, idx: Tensor, targets: Tensor) -> Signals:
        """Signals expected by theory; the cost grows with the square of the number of tokens."""
        return expect(self.config, self.scheme, idx, targets, layer_norm=self.layer_norm)

    def exponents(self, expected: Signals) -> Exponents:
        """Angle and gradient exponents, given the expected signals."""
        return exponents(self.config, self.scheme, expected, layer_norm=self.layer_norm)

    def measured(self, idx: Tensor, targets: Tensor, seed: int) -> Signals:
        """Signals measured on weights drawn with ``seed``."""
        source = Drawn(self.config, self.scheme, seed)
        return measure(source, idx, targets, layer_norm=self.layer_norm).signals


def schemes_of(config: GPTConfig, schemes: Sequence[Scheme]) -> list[Variant]:
    """One variant per scheme, all of the same shape; the head is untied where a scheme asks."""
    found = []
    for scheme in schemes:
        untie = scheme.untied and config.tied
        shape = replace(config, tied=False) if untie else config
        label = f"{scheme.name} untied" if untie else scheme.name
        found.append(Variant(label, configure(shape, scheme), scheme))
    return found


def ablate(config: GPTConfig, scheme: Scheme, names: Sequence[str]) -> list[Variant]:
    """The model as it is, and with one change at a time.

    Raises:
        UserError: an ablation is unknown.
    """
    found = [Variant(scheme.name, config, scheme)]
    for name in names:
        if name not in ABLATIONS:
            hint = nearest(name, ABLATIONS) or ", ".join(ABLATIONS)
            raise UserError(f"unknown ablation {name!r}", f"known: {hint}")
        label = f"- {name}"
        if name == "residual-scale":
            rules = {**scheme.rules, "attn_proj": scheme.rules["fc"]}
            plain = replace(
                scheme, rules=MappingProxyType({**rules, "mlp_proj": scheme.rules["fc"]})
            )
            found.append(Variant(label, config, plain))
        elif name == "tying":
            label = label if config.tied else "+ tying"
            found.append(Variant(label, replace(config, tied=not config.tied), scheme))
        elif name == "bias":
            label = label if config.bias else "+ bias"
            found.append(Variant(label, replace(config, bias=not config.bias), scheme))
        else:
            found.append(Variant(label, config, scheme, layer_norm=False))
    return found


def scan(config: GPTConfig, scheme: Scheme, what: str) -> Iterator[tuple[int, Variant]]:
    """The same model at several depths or widths.

    Args:
        config: the model to vary; its head size stays the same.
        scheme: the scheme.
        what: "depth" or "width".

    Raises:
        UserError: ``what`` is something else.
    """
    if what not in ("depth", "width"):
        raise UserError(f"--scan {what} is unknown", "use depth or width")
    own = config.n_layer if what == "depth" else config.n_embd
    for value in sorted({*(DEPTHS if what == "depth" else WIDTHS), own}):
        if what == "depth":
            shape = replace(config, n_layer=value)
        else:
            D = config.head_size if value % config.head_size == 0 else value
            shape = config.widened(value, D)
        yield value, Variant(str(value), configure(shape, scheme), scheme)


def scan_tokens(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """Random token ids and next ids for a scan."""
    return random_tokens(config, 1, min(TOKENS, config.block_size), seed=0)


def shallow_growth(config: GPTConfig, scheme: Scheme) -> float:
    """Expected growth of the residual stream with 4 layers, to detect depth-independence."""
    shape = configure(replace(config, n_layer=4), scheme)
    idx, targets = random_tokens(shape, 1, min(32, config.block_size), seed=0)
    return expect(shape, scheme, idx, targets, backward=False).growth
