"""A model made by the user's own code: ``module:factory`` or ``path.py:factory``."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.model.gpt import GPT

# What reads as module:factory or path.py:factory.
_REFERENCE = re.compile(r"^[\w./\\-]+:[A-Za-z_][\w.]*$")


def is_reference(text: str) -> bool:
    """Whether ``text`` reads as ``module:factory`` or ``path.py:factory``."""
    return bool(_REFERENCE.match(text)) and not Path(text).exists()


def load(reference: str) -> GPT:
    """Call the factory, which executes the user's code, and adopt the weights of its module.

    Raises:
        UserError: the factory cannot be imported or called, or its result is not a GPT-2.
    """
    from torch import nn

    place, _, name = reference.partition(":")
    with _users_code(f"cannot import {place}: "):
        factory: Any = _module(place)
    with _users_code(f"{reference} raised "):
        for part in name.split("."):
            if not hasattr(factory, part):
                raise UserError(f"{place} has no {part!r}", f"wanted by --from {reference}")
            factory = getattr(factory, part)
        if not isinstance(factory, nn.Module):
            _check_arguments(factory, reference)
        made = factory if isinstance(factory, nn.Module) else factory()
    if not isinstance(made, nn.Module):
        raise UserError(
            f"{reference} returns {type(made).__name__}, not an nn.Module",
            "the factory must return the model when called without arguments",
        )
    from nanogpt_cli.interop.module import adopt

    with _users_code(f"{reference} raised "):
        return adopt(made, reference)


def _check_arguments(factory: Any, reference: str) -> None:
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
        place, _, name = reference.partition(":")
        module, first = Path(place).stem if place.endswith(".py") else place, name.split(".")[0]
        config = f"{name}Config"  # as in nanoGPT and minGPT
        known = hasattr(sys.modules.get(module), config)
        imported, call = (f"{first}, {config}", f"{name}({config}())") if known else (first, "")
        raise UserError(
            f"{reference} needs arguments ({', '.join(needed)}), but is called without any",
            f"write a file make.py with `from {module} import {imported}` and "
            f"`def make(): return {call or name + '(...)'}`, and use --from make.py:make",
        )


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
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
def _users_code(failed: str) -> Iterator[None]:
    """Report whatever the user's code raises, ``GeneratorExit`` and the like included."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserError(f"{failed}{type(error).__name__}: {error}") from error
