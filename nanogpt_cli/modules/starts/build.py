"""Any module from its origin: a configuration, a Hugging Face folder, or the user's own factory.

A model of ``transformers`` stays on meta, and its parts get their values only while they are
looked at (``streaming.py``). What somebody's factory returns is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.modules.starts import library, user_code
from nanogpt_cli.modules.starts.fresh import FreshStart, NotLeanError
from nanogpt_cli.modules.starts.library import in_one_line
from nanogpt_cli.modules.starts.stored import StoredWeights, files_of, quiet_library

CONFIG = "config.json"


class Fill(Protocol):
    """Gives values to the parameters of a submodule that have none."""

    def __call__(self, path: str, submodule: nn.Module, /, *, recurse: bool = True) -> None:
        """Give them values.

        Args:
            path: of the submodule, as in ``named_modules``.
            submodule: part of the module on meta.
            recurse: whether parameters of the modules inside it get values too.
        """


@dataclass
class Built:
    """A module, with or without values.

    Attributes:
        module: on the device meta if ``fill`` is set (its buffers have values), else with values;
            in evaluation mode.
        label: its name in messages.
        fill: gives values to everything below a submodule.
        redraw: another draw of the same start, by its seed; ``None`` for stored weights.
        trained: whether these are stored weights and no fresh start.
        notes: remarks for the user.
        fresh: whether it is known that nobody trained these values.
    """

    module: nn.Module
    label: str
    fill: Fill | None = None
    redraw: Callable[[int], Built] | None = None
    trained: bool = False
    notes: tuple[str, ...] = ()
    fresh: bool = False

    def whole(self) -> nn.Module:
        """The module with all its values, for models that fit in memory."""
        if self.fill is not None:
            self.fill("", self.module)
        return self.module


def accepts(origin: str) -> bool:
    """Whether ``origin`` is of a kind that ``build`` makes a module of."""
    if user_code.is_reference(origin):
        return True
    path = Path(origin)
    return path.name == CONFIG or foreign_files.present(path / CONFIG)


def build(origin: str, seed: int = 0) -> Built:
    """Make the module that ``origin`` describes.

    Args:
        origin: a ``config.json``, a folder with one and perhaps safetensors, ``path.py:factory``,
            ``module:factory`` or ``module:factory(literal arguments)``.
        seed: of a fresh start.

    Raises:
        UserError: nothing can be made of it, or the user's code raised something.
    """
    if user_code.is_reference(origin):
        return _of_factory(origin, seed)
    path = Path(origin)
    folder = path.parent if path.name == CONFIG else path
    config = library.read_config(folder / CONFIG)
    files = [] if path.name == CONFIG else files_of(folder)
    if not files:
        return _fresh(config, str(path), seed)
    return _stored(config, files, str(path))


def _of_factory(reference: str, seed: int) -> Built:
    with torch.random.fork_rng(devices=[]):
        made, by_factory = user_code.load(reference, seed)
        with user_code.guarded(f"{reference} raised "):
            module = unwrapped(made)
            _leave_meta(module, reference)
            module.eval()
    redraw = (lambda other: _of_factory(reference, other)) if by_factory else None
    return Built(module, reference, redraw=redraw)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside the wrappers of ``torch.compile`` and data parallelism."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = module.__dict__.get("_modules", {}).get("_orig_mod")
        if isinstance(inner, nn.Module):
            module = inner
        elif isinstance(module, wrappers):
            module = cast(nn.Module, module.module)
        else:
            return module


def _leave_meta(module: nn.Module, reference: str) -> None:
    """Give a module that a factory left on meta its values, by its own functions."""
    lost = [name for name, p in module.named_parameters() if p.is_meta]
    if not lost:
        return
    kept = [name for name, t in _tensors(module) if not t.is_meta]
    able = [m for m in module.modules() if callable(getattr(m, "reset_parameters", None))]
    initialise: Any = getattr(module, "_init_weights", None)
    whole: Any = getattr(module, "init_weights", None)
    if kept or not (able or callable(initialise) or callable(whole)):
        raise UserError(
            f"{reference} leaves {lost[0]} on the device meta, without values",
            "return it with values, or give the module init_weights, _init_weights or "
            "reset_parameters",
        )
    module.to_empty(device="cpu")
    try:
        for tensor in (t for _, t in _tensors(module) if t.is_floating_point()):
            tensor.data.fill_(torch.nan)
        for submodule in able:
            cast(Any, submodule).reset_parameters()
        if callable(whole):
            whole()
        elif callable(initialise):
            module.apply(initialise)
    except Exception as error:
        raise UserError(f"{reference}: giving it values raised {in_one_line(error)}") from error
    if empty := [n for n, t in _tensors(module) if t.is_floating_point() and bool(t.isnan().any())]:
        raise UserError(
            f"{reference} leaves {empty[0]} on the device meta, and none of its functions fills it",
            "return it with values",
        )


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _fresh(config: Any, label: str, seed: int) -> Built:
    def redraw(other: int) -> Built:
        return _fresh(config, label, other)

    note = ""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = library.made(config, label)
        with quiet_library():
            start = FreshStart(model, seed)
        return Built(model, label, start.fill, redraw, fresh=True)
    except NotLeanError as error:
        note = f"{label}: built whole, because {error}"
    except (UserError, NotImplementedError, RuntimeError):
        pass  # a class that computes with values while it is built; if it is faulty, this says so
    with torch.random.fork_rng(devices=[]):
        library.check_memory(config, label)
        torch.manual_seed(seed)
        return Built(
            library.made(config, label), label, None, redraw, fresh=True,
            notes=(note,) if note else (),
        )  # fmt: skip


def _stored(config: Any, files: list[Path], label: str) -> Built:
    with torch.device("meta"):
        model = library.made(config, label)
    left_out: set[str] = set()
    with quiet_library():
        try:
            FreshStart(model, 0)  # gives the buffers their values
        except NotLeanError as error:
            left_out = set(error.left_out)
        weights = StoredWeights(model, files)
    if lost := left_out - dict(model.named_parameters()).keys() - weights.loaded:
        model = library.read_whole(config, files[0].parent, label)
        note = f"{label}: read whole, because its class makes {min(lost)} only with values"
        return Built(model, label, trained=True, notes=(note,))
    notes = []
    if weights.unused:
        notes.append(
            f"{label}: {len(weights.unused)} stored tensors are not used, such as "
            f"{weights.unused[0]!r:.80}"
        )
    return Built(model, label, weights.fill, trained=True, notes=tuple(notes))
