"""A module made by the user's own code: ``path.py:factory`` or ``module:factory(arguments)``."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from nanogpt_cli.errors import UserError

# What reads as module:factory or path.py:factory, with or without arguments.
_REFERENCE = re.compile(r"(?P<place>[\w./\\-]+):(?P<name>[A-Za-z_][\w.]*)(?P<call>\(.*\))?", re.S)


def is_reference(text: str) -> bool:
    """Whether ``text`` reads as ``module:factory``, ``path.py:factory`` or a call of one."""
    return bool(_REFERENCE.fullmatch(text)) and not Path(text.partition("(")[0]).exists()


def load(reference: str, seed: int) -> tuple[nn.Module, bool]:
    """Import the user's code and call the factory; this executes their code.

    Args:
        reference: ``place:name`` or ``place:name(arguments)``, where the arguments are literals.
        seed: of PyTorch's random numbers, for the import and again for the call: what a file
            draws when it is imported for the first time must not change what its factory draws.

    Returns:
        The module, and whether a factory made it: a module that is a variable of the file is
        the same at every call.

    Raises:
        UserError: the reference is malformed, their code raises anything, or the result is no
            ``nn.Module``.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UserError(f"{reference!r} does not read as module:factory or path.py:factory")
    place, name, call = match["place"], match["name"], match["call"]
    positional, keywords = _arguments(call, reference)
    torch.manual_seed(seed)
    with guarded(f"cannot import {place}: "), _settings_kept():
        found: Any = _imported(place)
    with guarded(f"{reference} raised "), _settings_kept():
        for part in name.split("."):
            if not hasattr(found, part):
                raise UserError(f"{place} has no {part!r}", f"wanted by --from {reference}")
            found = getattr(found, part)
        if isinstance(found, nn.Module) and not call:
            return found, False
        if not call:
            _check_needs_nothing(found, place, name)
        torch.manual_seed(seed)
        found = found(*positional, **keywords)
    if not isinstance(found, nn.Module):
        raise UserError(
            f"{reference} returns {type(found).__name__}, not an nn.Module",
            "the factory must return the model",
        )
    return found, True


def _arguments(call: str | None, reference: str) -> tuple[list[Any], dict[str, Any]]:
    """The literal values in ``(1, width=2)``; nothing else is evaluated."""
    if not call:
        return [], {}
    try:
        node = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        if any(word.arg is None for word in node.keywords):
            raise ValueError
        positional = [ast.literal_eval(argument) for argument in node.args]
        keywords = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise UserError(
            f"{reference}: the arguments must be literal values",
            "such as (12, width=768, names=['a', 'b']); for anything else write a factory "
            "without arguments",
        ) from None
    return positional, keywords


def _check_needs_nothing(factory: Any, place: str, name: str) -> None:
    """Refuse a class or function that cannot be called without arguments, with an example."""
    try:
        needed = [
            p.name
            for p in inspect.signature(factory).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
    except (TypeError, ValueError):  # not callable, or it does not tell
        return
    if needed:
        module, first = Path(place).stem if place.endswith(".py") else place, name.split(".")[0]
        config = f"{name}Config"  # as in nanoGPT and minGPT
        known = hasattr(sys.modules.get(module), config)
        imported, made = (f"{first}, {config}", f"{name}({config}())") if known else (first, "")
        raise UserError(
            f"{place}:{name} needs arguments ({', '.join(needed)}), but is called without any",
            f"give literal ones as {place}:{name}(...), or write a file make.py with "
            f"`from {module} import {imported}` and `def make(): return {made or name + '(...)'}`, "
            "and use --from make.py:make",
        )


def _imported(place: str) -> ModuleType:
    if not place.endswith(".py"):
        if "" not in sys.path:
            sys.path.insert(0, "")
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None or not Path(place).is_file():
        raise UserError(f"{place} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _settings_kept() -> Iterator[None]:
    """Undo what the user's code sets for the whole process: our own code runs in it as well."""
    dtype, device, grad = (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    )  # fmt: skip
    folder = Path.cwd()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_grad_enabled(grad)
        os.chdir(folder)


@contextlib.contextmanager
def guarded(failed: str) -> Iterator[None]:
    """Report whatever the user's code raises, ``SystemExit`` and the like included."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        words = " ".join(str(error).split())[:300]
        raise UserError(f"{failed}{type(error).__name__}: {words}") from error
