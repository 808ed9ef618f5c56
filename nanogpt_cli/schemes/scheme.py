"""Initialisation schemes as data: one law per class of tensor, with multipliers and sources.

The catalogue is ``schemes.toml``; a recipe's ``[init]`` table is read by the same code.

For an optimizer: ``get(name).lr_multiplier(kind, n_embd=d, n_layer=L)`` is 1.0 except in the µP
family, as are the factors on AdamW's ε and on weight decay; ``model.parameters.update_class`` gives
a parameter's kind. For a model: ``init.drawing.configure`` puts a scheme's multipliers into its
configuration and ``init.drawing.build`` draws its values.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.schemes import positions
from nanogpt_cli.schemes.laws import Law, Rule, evaluate

CLASSES = (
    *("wte", "wpe", "q", "k", "v", "attn_proj", "fc", "mlp_proj", "lm_head"),
    *("ln", "ln_bias", "bias"),
    "gate",
)
# Classes that a block has, whose laws in the first block may differ.
_OF_BLOCKS = ("q", "k", "v", "attn_proj", "fc", "mlp_proj", "gate")
# From large to small: a later group overrides an earlier one, and a class overrides every group.
# The gate of a gated MLP follows fc unless it is named.
GROUPS = {
    "linear": ("q", "k", "v", "attn_proj", "fc", "mlp_proj"),
    "qkv": ("q", "k", "v"),
    "proj": ("attn_proj", "mlp_proj"),
    "embedding": ("wte", "wpe"),
}
MULTIPLIERS = ("embedding", "residual", "attention", "output")
# The optimizer may treat the final LayerNorm, weight and bias, unlike those of the blocks. Where a
# table says nothing of it, it is as they are.
FINAL_NORM = "ln_f"
_UPDATED_AS = {
    "qkv": ("q",),
    "ln_f": (FINAL_NORM, "ln"),
    "ln_f_bias": (FINAL_NORM, "ln_bias"),
}
_FACTORS = ("lr", "eps", "decay")
_TEXT_KEYS = ("about", "source", "mismatch")


@dataclass(frozen=True)
class Scheme:
    """How every tensor of a GPT is initialised.

    Attributes:
        name: its name in recipes and commands.
        about: the idea in one line.
        source: where it is defined.
        aliases: other names for it.
        rules: a law for each of ``CLASSES``.
        first: laws of the first block that differ, where positions are a learned table.
        multipliers: formulas for the factors on the signal (``MULTIPLIERS``); absent means GPT-2's.
        lr: formulas for the factor on the learning rate, by class; absent means 1.
        eps: the same for AdamW's ε.
        decay: the same for the weight decay.
        base_width, base_depth: the width and depth at which ``m`` and ``r`` are 1.
        mismatch: what it assumes and a pre-LN GPT-2 with tied head lacks; empty if nothing.
        untied: it has a law of its own for the head, so comparisons untie it.
    """

    name: str
    about: str
    source: str
    aliases: tuple[str, ...]
    rules: Mapping[str, Rule]
    first: Mapping[str, Rule]
    multipliers: Mapping[str, str]
    lr: Mapping[str, str]
    eps: Mapping[str, str]
    decay: Mapping[str, str]
    base_width: int
    base_depth: int
    mismatch: str
    untied: bool

    def law(self, tensor_class: str, values: Mapping[str, float], *, first: bool = False) -> Law:
        """The law of a class of tensor.

        Args:
            tensor_class: one of ``CLASSES``.
            values: d, L, l, D, V, T, fan_in and fan_out.
            first: it belongs to the first block of a model with a table of positions.
        """
        rules = {**self.rules, **self.first} if first else self.rules
        return rules[tensor_class].law(self._scope(values))

    def lr_multiplier(self, tensor_class: str, *, n_embd: int, n_layer: int) -> float:
        """The factor on the learning rate for an ``update_class``; 1 outside µP."""
        return self._factor(self.lr, tensor_class, n_embd, n_layer)

    def eps_multiplier(self, tensor_class: str, *, n_embd: int, n_layer: int) -> float:
        """The factor on AdamW's ε for an ``update_class``; 1 where the scheme says nothing."""
        return self._factor(self.eps, tensor_class, n_embd, n_layer)

    def decay_multiplier(self, tensor_class: str, *, n_embd: int, n_layer: int) -> float:
        """The factor on weight decay for an ``update_class``; 1 where the scheme says nothing."""
        return self._factor(self.decay, tensor_class, n_embd, n_layer)

    def _factor(self, table: Mapping[str, str], kind: str, n_embd: int, n_layer: int) -> float:
        keys = _UPDATED_AS.get(kind, (kind,))
        formula = next((table[key] for key in keys if key in table), "1")
        return evaluate(formula, self._scope({"d": n_embd, "L": n_layer}))

    def multiplier(self, name: str, values: Mapping[str, float]) -> float | None:
        """The factor ``name`` of ``MULTIPLIERS`` on the signal; ``None`` where GPT-2's stands."""
        formula = self.multipliers.get(name)
        return None if formula is None else evaluate(formula, self._scope(values))

    def _scope(self, values: Mapping[str, float]) -> dict[str, float]:
        ratios = {"m": values["d"] / self.base_width, "r": values["L"] / self.base_depth}
        return {**values, **ratios}

    @property
    def formula(self) -> str:
        """The laws in one line, equal ones together: ``wte wpe normal(0.02); …``."""
        by_law: dict[str, list[str]] = {}
        for name in CLASSES[:8]:
            by_law.setdefault(str(self.rules[name]), []).append(name)
        laws = [f"{' '.join(who)} {law}" for law, who in by_law.items()]
        return "; ".join([*laws, *(f"{who} of block 0 {law}" for who, law in self.first.items())])


def _expand(
    table: Mapping[str, Any], where: str, classes: tuple[str, ...] = CLASSES
) -> dict[str, str]:
    """Spread group keys over their classes; a class wins over a group."""
    groups = {g: members for g, members in GROUPS.items() if {*members} <= {*classes}}
    known = (*classes, *groups)
    for key, value in table.items():
        if key not in known:
            hint = nearest(key, known)
            raise UserError(
                f"{where}: unknown key {key!r:.80}",
                f"did you mean {hint!r}?" if hint else f"known: {', '.join(known)}",
            )
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise UserError(f"{where}.{key} must be text such as 'normal(0.02)'")
    spread = {c: str(table[g]) for g, members in groups.items() if g in table for c in members}
    spread |= {c: str(table[c]) for c in classes if c in table}
    if "fc" in spread:
        spread.setdefault("gate", spread["fc"])
    return spread


def _subtable(table: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise UserError(f"{where}.{key} must be a table")
    return value


def _factors(table: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    """Formulas of one of ``_FACTORS`` by class."""
    return _expand(_subtable(table, key, where), f"{where}.{key}", (*CLASSES, FINAL_NORM))


def _positive(table: Mapping[str, Any], key: str, default: int, where: str) -> int:
    value = table.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}.{key} must be a whole number from 1, got {value!r}")
    return value


def _rule(text: str, tensor_class: str, where: str) -> Rule:
    """The law of a class of tensor, if it may have that one."""
    rule = Rule.parse(text)
    homes = positions.CLASSES.get(rule.kind, (tensor_class,))
    if tensor_class not in homes:
        raise UserError(
            f"{where}.{tensor_class} cannot be {rule}",
            f"{rule.kind} is a law of {' and '.join(homes)}",
        )
    return rule


def _from_table(name: str, table: Mapping[str, Any], base: Scheme | None, where: str) -> Scheme:
    """Read one scheme; what the table leaves out is taken from ``base``."""
    special = {*_TEXT_KEYS, *_FACTORS, "aliases", "base", "multipliers", "base_width", "base_depth",
               "untied", "first"}  # fmt: skip
    untied = table.get("untied", base.untied if base else False)
    if not isinstance(untied, bool):
        raise UserError(f"{where}.untied must be true or false, got {untied!r:.80}")
    laws = _expand({k: v for k, v in table.items() if k not in special}, where)
    rules = {c: _rule(text, c, where) for c, text in laws.items()}
    in_first = _expand(_subtable(table, "first", where), f"{where}.first", _OF_BLOCKS)
    first = {c: _rule(text, c, f"{where}.first") for c, text in in_first.items()}
    multipliers = {k: str(v) for k, v in _subtable(table, "multipliers", where).items()}
    for key in multipliers:
        if key not in MULTIPLIERS:
            raise UserError(
                f"{where}.multipliers: unknown key {key!r:.80}", f"known: {', '.join(MULTIPLIERS)}"
            )
    factors = {
        key: {**(getattr(base, key) if base else {}), **_factors(table, key, where)}
        for key in _FACTORS
    }
    return Scheme(
        name=name,
        about=str(table.get("about", f"your own, from {base.name}" if base else "")),
        source=str(table.get("source", where)),
        aliases=tuple(table.get("aliases", ())),
        rules=MappingProxyType({**(base.rules if base else {}), **rules}),
        first=MappingProxyType({**(base.first if base else {}), **first}),
        multipliers=MappingProxyType({**(base.multipliers if base else {}), **multipliers}),
        **{key: MappingProxyType(values) for key, values in factors.items()},
        base_width=_positive(table, "base_width", base.base_width if base else 256, where),
        base_depth=_positive(table, "base_depth", base.base_depth if base else 2, where),
        mismatch=str(table.get("mismatch", base.mismatch if base else "")),
        untied=untied,
    )


@cache
def catalogue() -> Mapping[str, Scheme]:
    """Every shipped scheme by name, in the order of the file."""
    text = (
        resources.files("nanogpt_cli.schemes").joinpath("schemes.toml").read_text(encoding="utf-8")
    )
    schemes: dict[str, Scheme] = {}
    for name, table in tomllib.loads(text).items():
        base = schemes[table["base"]] if "base" in table else None
        schemes[name] = _from_table(name, table, base, name)
    return MappingProxyType(schemes)


def names() -> list[str]:
    """The names of all schemes."""
    return list(catalogue())


def get(name: str) -> Scheme:
    """The scheme of that name or alias.

    Raises:
        UserError: there is none; the message gives the nearest name.
    """
    schemes = catalogue()
    known = {alias: s for s in schemes.values() for alias in (*s.aliases, s.name)}
    if name.lower() in known:
        return known[name.lower()]
    by_lower = {key.lower(): scheme for key, scheme in known.items()}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    hint = nearest(name, known)
    raise UserError(
        f"unknown init scheme {name!r}",
        f"did you mean {hint!r}?" if hint else f"known: {', '.join(schemes)}",
    )


def parse_custom(table: Mapping[str, Any], *, where: str = "init") -> Scheme:
    """The scheme of a recipe's ``[init]`` table.

    ``base`` names the scheme it changes (default: ``gpt2``); every other key is one of
    ``CLASSES`` or ``GROUPS`` with a law, ``multipliers``, ``lr``, ``eps``, ``decay``,
    ``base_width`` or ``base_depth``. Formulas are evaluated for a small shape, so that errors
    appear when the recipe is read.

    Raises:
        UserError: a key, law or formula is wrong; the message names it.
    """
    if "aliases" in table:
        raise UserError(f"{where}: unknown key 'aliases'", "your own scheme is called custom")
    for key in (*_TEXT_KEYS, "base"):
        if not isinstance(table.get(key, ""), str):
            raise UserError(f"{where}.{key} must be text")
    base = get(table.get("base", "gpt2"))
    scheme = _from_table("custom", table, base, where)
    shape = {"d": 64, "L": 2, "l": 0, "D": 16, "V": 64, "T": 32, "fan_in": 64, "fan_out": 64}
    for name in CLASSES:
        scheme.law(name, shape)
        scheme.law(name, shape, first=True)
    for key in _FACTORS:
        for name in (*CLASSES, FINAL_NORM):
            scheme._factor(getattr(scheme, key), name, 64, 2)
    for name in MULTIPLIERS:
        scheme.multiplier(name, shape)
    return scheme
