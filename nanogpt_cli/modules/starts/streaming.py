"""One pass through a module that never has all its values at once.

The module's own forward runs. A block gets its values just before it is called, and loses them
when it returns; so do large embeddings and linear maps outside the blocks. What an observer wants
to know of the values, it measures while they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from nanogpt_cli.errors import UserError
from nanogpt_cli.machine import memory
from nanogpt_cli.modules.starts.build import Built, Fill
from nanogpt_cli.modules.starts.meta import Slot, Slots

Observe = Callable[[str, nn.Module], None]


@contextmanager
def streamed(built: Built, blocks: Sequence[str], observe: Observe | None = None) -> Iterator[None]:
    """Within this context, ``built.module(ids)`` works although the module is on meta.

    Forward hooks that others registered on a block before see it with its values; those registered
    within the context run after they are gone.

    Args:
        built: the module. If it has values, it is only observed.
        blocks: paths of the repeated blocks.
        observe: called as ``observe(path, submodule)`` while a submodule has values: once for every
            block that runs, before it does, and once for every other module that has parameters of
            its own. It must not look at parameters of other submodules.

    Raises:
        UserError: a path in ``blocks`` does not exist.
    """
    watch = observe or _nothing
    found = places(built.module, blocks)
    if built.fill is None:
        for path, submodule in found:
            watch(path, submodule)
        yield
        return
    stream = _Stream(built.module, built.fill, watch)
    try:
        for path, submodule in found:
            stream.hook(path, submodule, block=path in blocks)
        yield
    finally:
        stream.close()


def _nothing(_path: str, _submodule: nn.Module) -> None:
    pass


def places(module: nn.Module, blocks: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """The blocks, and every module outside of them that has parameters of its own."""
    modules = dict(module.named_modules())
    if unknown := [path for path in blocks if path not in modules]:
        raise UserError(f"the module has no submodule {unknown[0]!r}", "blocks are named by paths")
    inside = {id(m) for path in blocks for m in modules[path].modules()}
    return [
        (path, m)
        for path, m in modules.items()
        if path in blocks or (id(m) not in inside and m._parameters)
    ]


class _Stream:
    """Hooks that give submodules their values and take them away."""

    def __init__(self, module: nn.Module, fill: Fill, observe: Observe) -> None:
        self._slots = Slots(module)
        self._fill, self._observe = fill, observe
        self._handles: list[Any] = []
        self._seen: set[str] = set()
        self._kept: set[Slot] = {s for s in self._slots.all if s.filled}

    def hook(self, path: str, submodule: nn.Module, *, block: bool) -> None:
        """Let a submodule have values while it runs; small ones outside the blocks keep theirs."""

        def before(module: nn.Module, _args: Any) -> None:
            self._give(path, module, block)

        def after(module: nn.Module, _args: Any, _output: Any) -> None:
            self._take(module, block)

        if block or isinstance(submodule, nn.Embedding | nn.Linear):
            self._handles += [
                submodule.register_forward_pre_hook(before, prepend=True),
                submodule.register_forward_hook(after, always_call=True),
            ]
        else:  # a norm, or parameters that the code around it may use at any time
            self._kept |= set(self._slots.below(submodule, recurse=False))
            self._give(path, submodule, block)

    def _give(self, path: str, module: nn.Module, block: bool) -> None:
        self._fill(path, module, recurse=block)  # modules outside the blocks are places each
        if path not in self._seen:
            self._seen.add(path)
            self._observe(path, module)

    def _take(self, module: nn.Module, block: bool) -> None:
        for slot in self._slots.below(module, recurse=block):
            # A tied parameter is needed again, by the head after the embedding.
            if slot not in self._kept and len(slot.places) == 1:
                slot.free()
        if block:
            memory.give_back()

    def close(self) -> None:
        """Remove the hooks, and leave the module on meta as it was."""
        for handle in self._handles:
            handle.remove()
        for slot in self._slots.all:
            slot.free()


def logits_of(output: Any) -> Tensor:
    """The logits (..., V) in what a language model returns: an output with logits, or a tuple."""
    found = getattr(output, "logits", output)
    if isinstance(found, dict):
        found = found.get("logits")
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise UserError(
            f"the module returns {type(output).__name__}, in which no logits are found",
            "it must return logits, a tuple that begins with them, or an object with .logits",
        )
    return found
