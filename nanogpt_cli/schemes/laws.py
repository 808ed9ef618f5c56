"""Laws of initial values: how one tensor's entries are distributed, written as text.

A law is a call such as ``normal(0.02 / sqrt(2*L))``. Its argument is arithmetic over the model's
shape (``VARIABLES``), so that the formula shown to the user is the one that is evaluated.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.schemes import positions

VARIABLES = {
    "d": "channels (n_embd)",
    "L": "layers (n_layer)",
    "l": "index of the layer, from 0",
    "D": "channels per head",
    "V": "rows of the token embedding",
    "T": "block_size",
    "fan_in": "inputs of this matrix (d for the embeddings)",
    "fan_out": "outputs of this matrix; d each for q, k and v",
    "m": "width ratio d / base_width",
    "r": "depth ratio L / base_depth",
}
KINDS = {
    "normal": "std",
    "uniform": "std",
    "truncated": "std, cut",
    "orthogonal": "gain",
    "constant": "value",
    **positions.KINDS,
}
# PyTorch's CPU draws float32 normals by Box-Muller from 24-bit uniforms, which bounds their size.
LARGEST_NORMAL = math.sqrt(48 * math.log(2))
# Limits of what anyone may write. A long formula can be nested deeper than Python's stack; values
# beyond a narrow cut are redrawn almost for ever; draws of a huge scale leave float32.
_LONGEST = 200
_NARROWEST_CUT = 0.1
_LARGEST_SCALE = 1e30

_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "sqrt": math.sqrt,
    "ln": math.log,
    "exp": math.exp,
    "min": min,
    "max": max,
}


@lru_cache(maxsize=512)
def _parse(text: str) -> ast.expr:
    if len(text) > _LONGEST:
        raise UserError(
            f"not a formula: {text[:40]!r}… has {len(text):,} characters",
            f"a formula has at most {_LONGEST}",
        )
    try:
        return ast.parse(text.replace("^", "**").strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(f"not a formula: {text!r}", "example: normal(0.02 / sqrt(2*L))") from error


def evaluate(text: str, values: Mapping[str, float]) -> float:
    """The value of an arithmetic formula.

    Args:
        text: numbers, ``+ - * / ^``, brackets, ``sqrt ln exp min max`` and ``VARIABLES``.
        values: a number for every variable that may occur.

    Raises:
        UserError: the formula is malformed, names something unknown, or has no finite value.
    """
    try:
        value = _value(_parse(text), values, text)
    except (ArithmeticError, ValueError, TypeError) as error:
        raise UserError(f"formula {text!r} has no value: {error}") from error
    if isinstance(value, complex) or not math.isfinite(value):
        raise UserError(f"formula {text!r} gives {value}")
    return value


def _value(node: ast.AST, values: Mapping[str, float], text: str) -> float:
    """Evaluate a tree of numbers, names, operators and calls of known functions; nothing else."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.Name(id=name):
            if name in values:
                return float(values[name])  # a power of whole numbers may have no end
            hint = nearest(name, values) or ", ".join(VARIABLES)
            raise UserError(f"formula {text!r} uses unknown {name!r}", f"known: {hint}")
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(operand, values, text))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, values, text), _value(right, values, text))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(a, values, text) for a in arguments))
    hint = f"allowed: numbers, + - * / ^, {', '.join(_FUNCTIONS)}, {', '.join(VARIABLES)}"
    raise UserError(f"formula {text!r} contains {ast.unparse(node)!r}", hint)


def _phi(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def truncated_moments(cut: float) -> tuple[float, float]:
    """Second and fourth moment of a standard normal cut at ±``cut`` (values outside redrawn)."""
    if cut > 30:
        return 1.0, 3.0
    mass = math.erf(cut / math.sqrt(2))
    second = 1 - 2 * cut * _phi(cut) / mass
    fourth = 3 - 2 * _phi(cut) * (cut**3 + 3 * cut) / mass
    return second, fourth


@dataclass(frozen=True)
class Law:
    """A distribution with numbers in place of formulas.

    Attributes:
        kind: one of ``KINDS``.
        scale: σ of the underlying normal, std of the uniform, gain of the orthogonal matrix, or the
            constant; see ``positions.entries`` for laws without chance.
        cut: where a truncated normal ends, in units of ``scale``.
        head: channels of a head, for laws that need it.
    """

    kind: str
    scale: float
    cut: float = math.inf
    head: int = 0

    @property
    def placed(self) -> bool:
        """Whether the law leaves nothing to chance (``positions``)."""
        return self.kind in positions.KINDS

    def moments(self, fan_out: int, fan_in: int) -> positions.Moments:
        """Those of a (fan_out, fan_in) matrix whose law is ``placed``."""
        return positions.moments(self.kind, self.scale, (fan_out, fan_in), self.head)

    def mean_square(self, fan_out: int, fan_in: int) -> float:
        """E[w²] of the entries of a (fan_out, fan_in) matrix."""
        if self.placed:
            return self.moments(fan_out, fan_in).mean_square
        return self.true_std(fan_out, fan_in) ** 2 + self.mean**2

    def true_std(self, fan_out: int, fan_in: int) -> float:
        """The actual standard deviation of the entries of a (fan_out, fan_in) matrix.

        A normal truncated at ±3σ has 0.9866σ, at ±2σ 0.8796σ; a (semi-)orthogonal matrix of gain g
        has g/√max(fan_out, fan_in).
        """
        if self.kind == "constant":
            return 0.0
        if self.placed:
            found = self.moments(fan_out, fan_in)
            return math.sqrt(max(0.0, found.mean_square - found.mean**2))
        if self.kind == "orthogonal":
            return self.scale / math.sqrt(max(fan_out, fan_in))
        return self.scale * math.sqrt(truncated_moments(self.cut)[0])

    @property
    def mean(self) -> float:
        """The expected mean: the constant, else 0."""
        return self.scale if self.kind == "constant" else 0.0

    @property
    def kurtosis(self) -> float:
        """Fourth moment over squared variance: 3 normal, 1.8 uniform."""
        if self.kind == "uniform":
            return 1.8
        second, fourth = truncated_moments(self.cut)
        return fourth / second**2

    @property
    def bound(self) -> float:
        """The magnitude no value can exceed; infinite for most laws."""
        if self.kind == "uniform":
            return math.sqrt(3) * self.scale
        return self.cut * self.scale if self.kind == "truncated" else math.inf

    def relative_error(self, n: int) -> float:
        """Standard error of a measured std over ``n`` values, as a share of the std: √((κ-1)/4n).

        An orthogonal matrix has an exact norm: only rounding and the sample mean add an error.
        Of a placed one, which has an exact mean, rounding alone does.
        """
        if self.placed:
            return 1e-6
        if self.kind == "orthogonal":
            return max(1e-4, 1 / n)
        return math.sqrt((self.kurtosis - 1) / (4 * n))

    def largest(self, n: int, std: float) -> float:
        """The largest magnitude to expect among ``n`` values of standard deviation ``std``."""
        if self.kind == "constant":
            return abs(self.scale)
        if self.kind == "uniform":
            return math.sqrt(3) * self.scale * n / (n + 1)
        sigma = std if self.kind == "orthogonal" else self.scale
        return sigma * min(self.cut, LARGEST_NORMAL, normal_extreme(n))

    def __str__(self) -> str:
        if self.kind == "constant":
            return f"{self.scale:g}"
        tail = f", ±{self.cut:g}σ" if self.kind == "truncated" else ""
        return f"{self.kind}({self.scale:.4g}{tail})"


def normal_extreme(n: int) -> float:
    """The mean of the largest |x| among ``n`` standard normal draws (Gumbel limit)."""
    if n < 2:
        return 1.0
    root = math.sqrt(2 * math.log(2 * n))
    gumbel = 0.5772156649
    return root - (math.log(math.log(2 * n)) + math.log(4 * math.pi) - 2 * gumbel) / (2 * root)


@dataclass(frozen=True)
class Rule:
    """A law before its formula is evaluated, e.g. ``normal(0.02 / sqrt(2*L))``."""

    kind: str
    formula: str
    cut: float = math.inf

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read ``kind(formula)`` or ``truncated(formula, cut)``.

        Raises:
            UserError: the text is not a law, its kind is unknown, or arguments are missing.
        """
        node = _parse(text)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.keywords:
            raise UserError(f"not a law: {text!r}", "example: normal(0.02 / sqrt(2*L))")
        kind = node.func.id
        if kind not in KINDS:
            known = ", ".join(f"{k}({v})" for k, v in KINDS.items())
            raise UserError(f"unknown law {kind!r} in {text!r}", f"known: {known}")
        if len(node.args) != len(KINDS[kind].split(",")):
            raise UserError(f"{text!r} needs {kind}({KINDS[kind]})")
        formula = ast.unparse(node.args[0]).replace("**", "^")
        if kind != "truncated":
            return cls(kind, formula)
        cut = evaluate(ast.unparse(node.args[1]), {})
        if cut < _NARROWEST_CUT:
            raise UserError(f"{text!r} cuts at {cut:g}σ", f"the cut is at least {_NARROWEST_CUT}σ")
        return cls(kind, formula, cut)

    def law(self, values: Mapping[str, float]) -> Law:
        """The law for one tensor of one model; ``values`` gives the ``VARIABLES``."""
        scale = evaluate(self.formula, values)
        if scale < 0 and self.kind != "constant":
            raise UserError(f"law {self} has the negative scale {scale:g}")
        if abs(scale) > _LARGEST_SCALE:
            raise UserError(
                f"law {self} has the scale {scale:g}", f"the largest is {_LARGEST_SCALE:g}"
            )
        if scale == 0:
            return Law("constant", 0.0)
        head = int(values["D"]) if self.kind in positions.KINDS else 0
        return Law(self.kind, scale, self.cut, head)

    def __str__(self) -> str:
        if self.kind == "constant":
            return self.formula
        tail = f", ±{self.cut:g}σ" if self.kind == "truncated" else ""
        return f"{self.kind}({pretty(self.formula)}{tail})"


def pretty(formula: str) -> str:
    """A formula in readable form: ``0.02 / sqrt(2 * L)`` becomes ``0.02/√(2L)``."""
    text = formula.replace("sqrt", "√").replace(" / ", "/").replace(" ^ ", "^")
    text = re.sub(r"(\d) \* ([A-Za-z(])", r"\1\2", text).replace(" * ", "·").replace("^(-", "^-(")
    text = re.sub(r"\^-\(([\d.]+)\)", r"^-\1", text)
    return re.sub(r"√\((\w)\)", r"√\1", text).replace(" + ", "+")
