"""A fresh start of a model of ``transformers``, drawn part by part without ever being whole.

``from_pretrained`` makes a model on meta and relies on ``_init_weights`` for every tensor that a
checkpoint lacks, computed buffers included (``PreTrainedModel.initialize_weights`` in
transformers 5). The same function is applied here to one part of the model at a time. Each module
draws from its own seed, so that its values do not depend on the parts around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nanogpt_cli.modules.starts.meta import Slot, Slots


class NotLeanError(Exception):
    """This class cannot be started part by part: it must be built whole.

    Attributes:
        left_out: names of the tensors to which ``_init_weights`` gives no values.
    """

    def __init__(self, left_out: list[str]) -> None:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        super().__init__(f"its _init_weights gives no values to {left_out[0]}{more}")
        self.left_out = left_out


@dataclass(frozen=True)
class _Writer:
    """A module whose ``_init_weights`` writes parameters: its own, and sometimes its children's."""

    path: str
    module: nn.Module
    owner: Any  # the PreTrainedModel around it
    slots: tuple[Slot, ...]

    def draw(self, seed: int) -> None:
        _seed(seed, self.path)
        self.owner._init_weights(self.module)


class FreshStart:
    """Gives a model on meta its initial values, part by part.

    Args:
        model: a ``PreTrainedModel`` made on meta; its buffers get their values here.
        seed: of all draws, together with the path of the module that draws.

    Raises:
        NotLeanError: ``_init_weights`` leaves out a parameter or a buffer.
    """

    def __init__(self, model: Any, seed: int) -> None:
        self.model, self.seed = model, seed
        self.slots = Slots(model)
        left = _unregistered(model)
        self._writers, buffers = self._observed_writers()
        self._drawer = {slot: self._last_word(slot) for slot in self.slots.all}
        left += [slot.places[0][2] for slot, writer in self._drawer.items() if writer is None]
        if left := left + buffers:
            raise NotLeanError(left)

    def fill(self, _path: str, submodule: nn.Module, /, *, recurse: bool = True) -> None:
        """Give values to every parameter below ``submodule``; those that have values keep them."""
        new = {slot for slot in self.slots.below(submodule, recurse=recurse) if not slot.filled}
        for slot in new:
            slot.allocate()
        with _library_guards(), _own_random_numbers():
            for writer in self._writers:
                drawn = [s for s in writer.slots if s in new and self._may_write(writer, s)]
                if drawn:
                    kept = [s for s in writer.slots if s not in drawn]
                    with _protected(kept):
                        writer.draw(self.seed)

    def _may_write(self, writer: _Writer, slot: Slot) -> bool:
        return len(slot.places) == 1 or writer is self._drawer[slot]

    def _observed_writers(self) -> tuple[list[_Writer], list[str]]:
        """Run ``_init_weights`` of every module on meta, where it costs nothing, and watch.

        Buffers are small and have values from here on. They are initialised twice over different
        contents: those that then differ were not written.

        Returns:
            The writers, and the names of the buffers that none of them writes.
        """
        buffers = _Buffers(self.model)
        results: list[list[bytes]] = []
        found: list[_Writer] = []
        for content in (0, 255):
            buffers.overwrite(content)
            found = []
            with _library_guards(), _own_random_numbers():
                for path, module, owner in _in_library_order(self.model):
                    before = [slot.empty._version for slot in self.slots.below(module)]
                    _seed(self.seed, path)
                    owner._init_weights(module)
                    after = zip(self.slots.below(module), before, strict=True)
                    written = tuple(slot for slot, old in after if slot.empty._version != old)
                    if written:
                        found.append(_Writer(path, module, owner, written))
            results.append(buffers.contents())
        pairs = zip(buffers.names, *results, strict=True)
        return found, [name for name, first, second in pairs if first != second]

    def _last_word(self, slot: Slot) -> _Writer | None:
        """The module whose values a parameter ends up with.

        ``init_weights`` draws first and ties afterwards: a tied parameter has the values that were
        drawn for the one it is tied to.
        """
        targets = getattr(self.model, "all_tied_weights_keys", None) or {}
        sources = [m for m, _, name in slot.places if name not in targets]
        modules = {id(m) for m in (sources or [m for m, _, _ in slot.places])}
        writers = [w for w in self._writers if slot in w.slots]
        if len(slot.places) > 1:
            writers = [w for w in writers if id(w.module) in modules] or writers
        return writers[-1] if writers else None


def unguarded(model: Any) -> list[str]:
    """Parameters that ``_init_weights`` changes although they are flagged as loaded.

    ``from_pretrained`` runs ``_init_weights`` after it has read the stored values, and only the
    flag keeps them: code that writes past ``transformers.initialization`` damages them.

    Args:
        model: a ``PreTrainedModel`` on meta.
    """
    slots = Slots(model).all
    before = [slot.current._version for slot in slots]
    with _library_guards(), _own_random_numbers(), _protected(slots):
        for _, module, owner in _in_library_order(model):
            owner._init_weights(module)
    pairs = zip(slots, before, strict=True)
    return [slot.places[0][2] for slot, old in pairs if slot.current._version != old]


def _in_library_order(model: Any) -> Iterator[tuple[str, nn.Module, Any]]:
    """(path, module, model whose ``_init_weights`` is meant), children before their parents."""
    from transformers import PreTrainedModel

    seen: set[int] = set()

    def walk(module: nn.Module, path: str, owner: Any) -> Iterator[tuple[str, nn.Module, Any]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        owner = module if isinstance(module, PreTrainedModel) else owner
        for name, child in module.named_children():
            yield from walk(child, f"{path}.{name}" if path else name, owner)
        yield path, module, owner

    return walk(model, "", model)


def _unregistered(model: nn.Module) -> list[str]:
    """Tensors on meta that are neither parameters nor buffers: nothing gives them values."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_meta
    ]


class _Buffers:
    """The buffers of a model on meta, which get memory on the CPU here."""

    def __init__(self, model: nn.Module) -> None:
        self.names: list[str] = []
        self._tensors: list[Tensor] = []
        moved: dict[Tensor, Tensor] = {}  # one buffer may be registered in several places
        for path, module in model.named_modules():
            for name, old in list(module._buffers.items()):
                if old is not None and old.is_meta:
                    if old not in moved:
                        moved[old] = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                        self.names.append(f"{path}.{name}")
                        self._tensors.append(moved[old])
                    module._buffers[name] = moved[old]

    def overwrite(self, byte: int) -> None:
        for tensor in self._tensors:
            tensor.view(-1).view(torch.uint8).fill_(byte)

    def contents(self) -> list[bytes]:
        return [bytes(t.contiguous().view(-1).view(torch.uint8).numpy()) for t in self._tensors]


@contextmanager
def _library_guards() -> Iterator[None]:
    """As ``initialize_weights``: without gradients, and leaving alone what is flagged."""
    from transformers import initialization

    with torch.no_grad(), initialization.guard_torch_init_functions():
        yield


@contextmanager
def _protected(slots: list[Slot]) -> Iterator[None]:
    """Flag parameters as ``from_pretrained`` flags loaded ones: draws leave them alone."""
    parameters = [slot.current for slot in slots]
    for parameter in parameters:
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for parameter in parameters:
            del parameter._is_hf_initialized  # type: ignore[attr-defined]


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        yield


def _seed(seed: int, path: str) -> None:
    digest = hashlib.blake2b(f"{seed} {path}".encode(), digest_size=8).digest()
    torch.default_generator.manual_seed(int.from_bytes(digest, "big") >> 1)
