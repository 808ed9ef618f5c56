"""Reading nanoGPT's config files, which are Python source, from their syntax tree.

nanoGPT executes such a file inside its training script. Here nothing is executed: assignments of
literals, of arithmetic on numbers and of names assigned before are understood, and everything else
is reported with its line.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError, nearest

Value = int | float | bool | str

# The settings of nanoGPT's train.py with their defaults.
DEFAULTS: Final[Mapping[str, Value]] = {
    "out_dir": "out", "eval_interval": 2000, "log_interval": 1, "eval_iters": 200,
    "eval_only": False, "always_save_checkpoint": True, "init_from": "scratch",
    "wandb_log": False, "wandb_project": "owt", "wandb_run_name": "gpt2",
    "dataset": "openwebtext", "gradient_accumulation_steps": 40, "batch_size": 12,
    "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768, "dropout": 0.0, "bias": False,
    "learning_rate": 6e-4, "max_iters": 600000, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95,
    "grad_clip": 1.0, "decay_lr": True, "warmup_iters": 2000, "lr_decay_iters": 600000,
    "min_lr": 6e-5, "backend": "nccl", "device": "cuda", "dtype": "auto", "compile": True,
}  # fmt: skip

_LARGEST_FILE = 1 << 20
_LARGEST_NUMBER = 1e18
_BINARY: Final[Mapping[type[ast.operator], Callable[..., float]]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}  # fmt: skip
_UNARY: Final[Mapping[type[ast.unaryop], Callable[..., float]]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
}  # fmt: skip


@dataclass
class Settings:
    """The settings of a config file.

    Attributes:
        values: every setting of nanoGPT's train.py.
        origins: ``"line 12"`` or ``"--batch_size"`` for those that the file or a flag sets.
        notes: sentences about what was left out, each with its line.
    """

    values: dict[str, Value] = field(default_factory=lambda: dict(DEFAULTS))
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def given(self, name: str) -> bool:
        """Whether the file or a flag sets it; otherwise it has nanoGPT's default."""
        return name in self.origins


class _UnknownError(Exception):
    """The value of an expression cannot be known without executing it."""


def read(path: Path, flags: Iterable[str] = ()) -> Settings:
    """The settings of a config file with nanoGPT's own ``--key=value`` flags on top.

    Raises:
        UserError: the file is not Python source, or nanoGPT has no such flag.
    """
    settings = Settings()
    names: dict[str, Value] = dict(DEFAULTS)
    for statement in _parsed(path).body:
        try:
            _take(statement, names, settings)
        except RecursionError:
            raise UserError(f"line {statement.lineno} is nested too deeply") from None
    for flag in flags:
        _take_flag(flag, settings)
    return settings


def _parsed(path: Path) -> ast.Module:
    text = foreign_files.read_text(path, _LARGEST_FILE)
    try:
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant):
                _check_constant(node)
        return tree
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        raise UserError(
            f"{path} is not Python source: {where}{error.msg}", "give a file of nanoGPT's config/"
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, absurd nesting
        raise UserError(f"{path} is not Python source: {error}") from None


def _check_constant(node: ast.Constant) -> None:
    """Refuse what no recipe can hold: it could not even be shown."""
    if isinstance(node.value, int) and abs(node.value) > _LARGEST_NUMBER:
        raise UserError(f"line {node.lineno} holds a whole number beyond {_LARGEST_NUMBER:g}")
    if isinstance(node.value, str):
        try:
            node.value.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"line {node.lineno} holds half a surrogate pair") from None


def _take(statement: ast.stmt, names: dict[str, Value], settings: Settings) -> None:
    where = f"line {statement.lineno}"
    match statement:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.Pass():
            return
        case ast.Assign(targets=targets, value=value) if all(
            isinstance(target, ast.Name) for target in targets
        ):
            assigned = [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            assigned = [name]
        case _:
            text = ast.unparse(statement).splitlines()[0][:60]
            settings.notes.append(f"{where}: not a plain assignment, left out: {text}")
            return
    try:
        found = _value(value, names)
    except _UnknownError:
        for name in assigned:
            names.pop(name, None)
            if name in DEFAULTS:
                text = ast.unparse(value)[:60]
                settings.notes.append(f"{where}: {name} cannot be known without running: {text}")
        return
    for name in assigned:
        names[name] = found
        if name in DEFAULTS:
            _set(settings, name, found, where)
        elif not name.startswith("_"):
            settings.notes.append(f"{where}: {name} is not a setting of nanoGPT's train.py")


def _set(settings: Settings, name: str, value: Value, where: str) -> None:
    kind = type(DEFAULTS[name])
    if kind is float and type(value) is int:
        value = float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not kind:
        raise UserError(f"{where}: {name} = {value!r} should be of type {kind.__name__}")
    settings.values[name] = value
    settings.origins[name] = where


def _take_flag(flag: str, settings: Settings) -> None:
    name, separator, text = flag.removeprefix("--").partition("=")
    if not flag.startswith("--") or not separator:
        raise UserError(f"{flag!r} is not understood", "nanoGPT's flags are written --key=value")
    if name not in DEFAULTS:
        close = nearest(name, DEFAULTS)
        hint = f"did you mean --{close}=…?" if close else f"known: {', '.join(DEFAULTS)}"
        raise UserError(f"nanoGPT's train.py has no setting {name!r}", hint)
    value: object = text
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        value = text
    if not isinstance(value, int | float | bool | str):
        raise UserError(f"{flag}: a setting is a number, True, False or a word")
    _set(settings, name, value, f"--{name}")


def _value(node: ast.expr, names: Mapping[str, Value]) -> Value:
    """The value of an expression of literals, known names and arithmetic on numbers."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _arithmetic(_BINARY[type(op)], _value(left, names), _value(right, names))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _arithmetic(_UNARY[type(op)], _value(operand, names))
        case ast.Call(func=ast.Name(id="int"), args=[argument], keywords=[]):
            return _arithmetic(int, _value(argument, names))
    raise _UnknownError


def _arithmetic(operation: Callable[..., float], *operands: Value) -> Value:
    """Apply ``operation`` to numbers; a result that could grow without bound is unknown."""
    if any(isinstance(operand, str) or abs(operand) > _LARGEST_NUMBER for operand in operands):
        raise _UnknownError
    if operation is operator.pow and abs(operands[1]) > 64:  # type: ignore[arg-type]
        raise _UnknownError
    try:
        result = operation(*operands)
    except (ArithmeticError, ValueError, TypeError):
        raise _UnknownError from None
    if not isinstance(result, int | float):  # complex: a root of a negative number
        raise _UnknownError
    return result
