"""Someone else's model: ``module:factory`` or ``file.py:factory`` gives an ``nn.Module``."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.model.gpt import GPT

_REFERENCE = re.compile(r"^[\w./\\-]+:[A-Za-z_][\w.]*$")


def is_reference(text: str) -> bool:
    """Whether ``text`` reads as ``module:factory`` or ``path.py:factory``."""
    return bool(_REFERENCE.match(text)) and not Path(text).exists()


def load(reference: str) -> GPT:
    """Call the factory and take over its weights. It runs the user's own code.

    Raises:
        UserError: it cannot be imported or called, or what it gives is not a GPT-2.
    """
    from torch import nn

    place, _, name = reference.partition(":")
    factory: Any = _module(place)
    for part in name.split("."):
        if not hasattr(factory, part):
            raise UserError(f"{place} has no {part!r}", f"wanted by --from {reference}")
        factory = getattr(factory, part)
    try:
        made = factory if isinstance(factory, nn.Module) else factory()
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"{reference} raised {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise UserError(
            f"{reference} gives {type(made).__name__}, not an nn.Module",
            "the factory is called without arguments and returns the model",
        )
    from nanogpt_cli.interop.module import adopt

    return adopt(made, reference)


def _module(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            sys.path.insert(0, "")
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise UserError(f"{place} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # the user's module may fail in any way
        raise UserError(f"cannot import {place}: {type(error).__name__}: {error}") from error
    return module
