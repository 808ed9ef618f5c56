"""A log of everything that is written into tensors while a module is built."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_DRAW = {"normal_": "normal", "uniform_": "uniform", "bernoulli_": "bernoulli",
         "random_": "integers", "exponential_": "exponential", "cauchy_": "cauchy",
         "log_normal_": "log-normal", "geometric_": "geometric"}  # fmt: skip
# These return a new random tensor. Their own inner draws are below the level that is watched.
_NEW = {"randn": "normal", "randn_like": "normal", "normal": "normal",
        "rand": "uniform", "rand_like": "uniform"}  # fmt: skip
_SET = {"fill_": "constant", "zero_": "constant", "copy_": "copy"}
# Their numbers, with the values that PyTorch takes where none is given.
_DEFAULTS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "normal": (("mean", "std"), (0.0, 1.0)),
    "uniform": (("from", "to"), (0.0, 1.0)),
    "constant": (("value",), (0.0,)),
}
# Initialisers that draw several times, or elsewhere, and copy what they keep.
_COMPOSED = {"trunc_normal_": "truncated", "orthogonal_": "orthogonal"}


@dataclass(frozen=True)
class Write:
    """One writing of initial values into a tensor.

    Attributes:
        kind: ``normal``, ``uniform``, ``truncated``, another distribution, ``constant``, ``copy``.
        arguments: of the drawing function, such as mean and std, or the bounds.
        where: file and function that asked for it, the first outside of the libraries of
            initialisation.
        default: whether the constructor of a ``torch.nn`` layer did it.
        whole: whether it wrote the whole tensor.
        module: identity of the module whose turn it was; 0 if the code visits none.
    """

    kind: str
    arguments: tuple[float, ...]
    where: str
    default: bool
    whole: bool
    module: int = 0

    @property
    def random(self) -> bool:
        """Whether values were drawn, rather than set."""
        return self.kind not in ("constant", "copy")

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(f'{x:.4g}' for x in self.arguments)})"


class WriteLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches a module being built; memory without values becomes NaN, so that it can be told."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found: dict[int, list[Write]] = defaultdict(list)
        self._alive: list[Tensor] = []  # an address must not be used twice

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; shielding from the compiler would import it, for a second."""
        return False

    def of(self, tensor: Tensor) -> tuple[Write, ...]:
        """What was written into the memory of a tensor, in order."""
        return tuple(self._found.get(_memory(tensor), ()))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _EMPTY:
            if isinstance(result, Tensor) and result.is_floating_point() and not result.is_meta:
                result.fill_(math.nan)
        elif name in _DRAW or name in _SET:
            kind = _DRAW.get(name) or _SET[name]
            self._note(args[0], kind, _arguments(kind, args[1:], kwargs or {}))
        elif name in _NEW:
            given = args if name == "normal" else ()  # the others are given a shape
            self._note(result, _NEW[name], _arguments(_NEW[name], given, kwargs or {}))
        return result

    def _note(self, tensor: Tensor, kind: str, arguments: tuple[float, ...]) -> None:
        if not tensor.is_floating_point() or tensor.is_meta:
            return
        self._alive.append(tensor)
        where, initialiser, default, module = _caller()
        if initialiser in _COMPOSED:
            if initialiser == "trunc_normal_" and kind == "copy":
                return  # the second half of it: the draw was noted
            kind, arguments = _COMPOSED[initialiser], ()
        whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        self._found[_memory(tensor)].append(Write(kind, arguments, where, default, whole, module))


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _arguments(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, ...]:
    """Numbers given to a function that writes; PyTorch leaves out those that are the defaults."""
    names, defaults = _DEFAULTS.get(kind, ((), ()))
    found = dict(zip(names, defaults, strict=True))
    found |= dict(zip(names, args, strict=False))
    found |= {name: value for name, value in kwargs.items() if name in names}
    return tuple(float(value) for value in found.values() if isinstance(value, int | float))


def _caller() -> tuple[str, str, bool, int]:
    """Who writes: place in the code, initialiser, whether a layer's constructor, whose turn."""
    frame: FrameType | None = sys._getframe(3)
    initialiser, constructor = "", False
    while frame is not None:
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if not _of_a_library(path):
            return f"{path.name}:{name}", initialiser, constructor, _visited(frame)
        if path.name == "init.py":
            initialiser = name
        constructor |= name == "__init__" and "modules" in path.parts
        frame = frame.f_back
    return "", initialiser, constructor, 0


def _visited(frame: FrameType | None) -> int:
    """The module that ``Module.apply``, or a function with an argument ``module``, is at."""
    while frame is not None:
        names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
        if "module" in names or frame.f_code.co_name == "apply":
            found = frame.f_locals.get("module", frame.f_locals.get("self"))
            if isinstance(found, nn.Module):
                return id(found)
        frame = frame.f_back
    return 0


def _of_a_library(path: Path) -> bool:
    """PyTorch, or the wrappers of its initialisers in ``transformers``."""
    return "torch" in path.parts or path.name == "initialization.py"
