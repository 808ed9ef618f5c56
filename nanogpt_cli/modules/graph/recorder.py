"""Watches the operators of a forward pass and writes them down as a graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as disabled_modes
from torch.utils.weak import WeakTensorKeyDictionary

from nanogpt_cli.modules.graph.trace import (
    Call,
    Key,
    Node,
    Ref,
    Source,
    Trace,
    Value,
    replay,
    tensors,
)

# Called after an operator on activations with its key, name, arguments and result.
OnNode = Callable[[Key, str, tuple[Any, ...], Any], None]
# Index tensors of at most this many entries are kept.
_SMALL = 64


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that records the operators of a module's forward pass.

    Args:
        module: the module that will run; its submodules get hooks until ``remove``.
        ids: token ids (B, T), whose dependents are the activations.
        on_node: see ``OnNode``.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; shielding from the compiler would import it, for a second."""
        return False

    def __init__(
        self,
        module: nn.Module,
        ids: Tensor,
        on_node: OnNode | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self._ids = ids
        self._module, self._on_node = module, on_node
        self._known: Any = WeakTensorKeyDictionary()  # tensor -> value
        self._written: dict[int, int] = {}  # memory -> the value last written into it in place
        self._parameters: dict[int, str] = {}  # memory -> name of the parameter
        self._stack: list[tuple[str, int, int]] = []  # path, number of its call, index of the call
        self._count: dict[tuple[str, int], int] = {}
        self._times: dict[str, int] = {}
        self._handles: list[Any] = []
        for path, child in module.named_modules():
            enter, leave = functools.partial(self._enter, path), self._leave
            self._handles.append(child.register_forward_pre_hook(enter, with_kwargs=True))
            self._handles.append(child.register_forward_hook(leave))
        self.trace.ids = self._new(ids, -1, active=True)

    def remove(self) -> None:
        """Take the hooks off the module."""
        for handle in self._handles:
            handle.remove()

    def value(self, tensor: Tensor) -> int:
        """The value that a tensor holds now."""
        found = self._known.get(tensor)
        if found is None:
            name = self._name(tensor)
            source = _view(name, tensor) if name else None
            found = self._new(tensor, -1, active=False, source=source)
        written = self._written.get(_memory(tensor), -1)
        if written > found:
            found = self._merge(tensor, found, written)
        return int(found)

    def _merge(self, tensor: Tensor, before: int, written: int) -> int:
        """The value of a tensor after something was written through another view of its memory."""
        values = self.trace.values
        active = values[before].active or values[written].active
        index = len(self.trace.nodes)
        source = None if active else values[before].source  # a parameter that was just filled
        made = self._new(tensor, index, active=active, source=source)
        frame, calls = self._place()
        self.trace.nodes.append(
            Node(index, "merge", None, (), {}, (before, written), (made,), frame, calls, None)
        )
        return made

    def _place(self) -> tuple[str, tuple[int, ...]]:
        return (self._stack[-1][0] if self._stack else ""), tuple(s[2] for s in self._stack)

    def _new(self, tensor: Tensor, node: int, *, active: bool, source: Source | None = None) -> int:
        self.trace.values.append(Value(tuple(tensor.shape), node, active, source))
        value = self._known[tensor] = len(self.trace.values) - 1
        whole = tensor.dtype in (torch.int64, torch.int32)
        if whole and not active and not tensor.is_meta and tensor.numel() <= _SMALL:
            with disabled_modes():
                self.trace.constants[value] = tensor.detach().cpu().clone()
        return int(value)

    def _name(self, tensor: Tensor) -> str:
        """The parameter whose memory a tensor shares; empty if there is none."""
        memory = _memory(tensor)
        name = self._parameters.get(memory, "")
        stale = name and not self._shares(name, memory)
        if stale or (not name and isinstance(tensor, nn.Parameter)):
            # Where weights are streamed, the module has got new parameters since.
            named = list(self._module.named_parameters())
            self._parameters = {_memory(p): n for n, p in reversed(named)}
            name = self._parameters.get(memory, "")
        return name if memory else ""

    def _shares(self, name: str, memory: int) -> bool:
        try:
            return _memory(self._module.get_parameter(name)) == memory != 0
        except AttributeError:
            return False

    def _enter(self, path: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self._times[path] = self._times.get(path, 0) + 1
        found = tuple(self.value(t) for t in tensors((args, kwargs)))
        self.trace.calls.append(Call(path, found))
        self._stack.append((path, self._times[path], len(self.trace.calls) - 1))

    def _leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        call = self._stack.pop()[2]
        self.trace.calls[call].outputs = tuple(self.value(t) for t in tensors(output))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name, mutable = _operator(func)
        inputs = tuple(self.value(t) for t in tensors((args, kwargs)))
        recorded = _with_refs(args, self.value), _with_refs(kwargs, self.value)
        if name == "_local_scalar_dense" and args[0].is_meta:
            return replay(self.trace, inputs[0], self._ids).item()
        result = _called(func, name, args, kwargs)
        # Rows that are looked up are clipped in place (max_norm), but remain those of the table.
        clipped = name == "embedding_renorm"
        active = not clipped and any(self.trace.values[v].active for v in inputs)
        index = len(self.trace.nodes)
        memories = {_memory(t) for t in tensors((args, kwargs))}
        outputs = []
        for tensor in tensors(result):
            source = None if active else self._source(tensor, inputs)
            made = self._new(tensor, index, active=active, source=source)
            outputs.append(made)
            memory = _memory(tensor)
            if memory not in memories:
                self._written.pop(memory, None)
            elif mutable:
                self._written[memory] = made
        frame, calls = self._place()
        key = self._key() if active else None
        self.trace.nodes.append(
            Node(index, name, func, *recorded, inputs, tuple(outputs), frame, calls, key)
        )
        if key is not None and self._on_node is not None:
            self._on_node(key, name, args, result)
        return result

    def _key(self) -> Key:
        path, time = self._stack[-1][:2] if self._stack else ("", 0)
        count = self._count[path, time] = self._count.get((path, time), -1) + 1
        return path, time, count

    def _source(self, tensor: Tensor, inputs: tuple[int, ...]) -> Source | None:
        """The parameter of which a result is a view, a copy or a multiple."""
        values = self.trace.values
        found = [(v, values[v].source) for v in inputs]
        sources = [(v, s) for v, s in found if s is not None]
        if len({s.parameter for _, s in sources}) != 1:
            return None
        value, source = sources[0]
        if self._shares(source.parameter, _memory(tensor)):
            return _view(source.parameter, tensor)
        if tuple(tensor.shape) == values[value].shape:
            return source
        return _reshaped(source, values[value].shape, tuple(tensor.shape))


def _view(parameter: str, tensor: Tensor) -> Source:
    return Source(parameter, int(tensor.storage_offset()), tuple(int(n) for n in tensor.stride()))


def _reshaped(source: Source, before: tuple[int, ...], after: tuple[int, ...]) -> Source | None:
    """The source of a copy's view: known where an axis was dropped, or two were exchanged."""
    if len(before) == 2 and after == before[::-1]:
        return Source(source.parameter, source.offset, source.stride[::-1])
    return Source(source.parameter, source.offset, ())


def _called(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operator; on ``meta`` also where PyTorch refuses.

    A module may have parameters there and buffers with values. A product with a matrix for each
    group of rows is known there for bfloat16 alone.
    """
    found = list(tensors((args, kwargs)))
    if not any(t.is_meta for t in found):
        return func(*args, **kwargs)
    grouped = name == "_grouped_mm"

    def moved(item: Any) -> Any:
        if isinstance(item, list | tuple):
            return type(item)(moved(one) for one in item)
        if not isinstance(item, Tensor):
            return item
        if not item.is_meta and item.dim():
            item = item.to("meta")
        return item.bfloat16() if grouped and item.is_floating_point() else item

    if not grouped and all(t.is_meta for t in found):
        return func(*args, **kwargs)
    with disabled_modes():
        result = func(*moved(args), **{key: moved(item) for key, item in kwargs.items()})
        return result.to(args[0].dtype) if grouped else result


def _memory(tensor: Tensor) -> int:
    """Identity of the memory that a tensor is a view of; 0 if it has none."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def _with_refs(items: Any, value: Callable[[Tensor], int]) -> Any:
    if isinstance(items, Tensor):
        return Ref(value(items))
    if isinstance(items, list | tuple):
        return tuple(_with_refs(item, value) for item in items)
    if isinstance(items, dict):
        return {name: _with_refs(item, value) for name, item in items.items()}
    return items


@functools.cache
def _operator(func: Any) -> tuple[str, bool]:
    """An operator's name, and whether it changes an argument in place."""
    namespace, name = func._schema.name.split("::")
    mutable = bool(func._schema.is_mutable)
    if namespace != "aten":
        return f"{namespace}::{name}", mutable
    return (name[:-1] if mutable and name.endswith("_") else name), mutable
