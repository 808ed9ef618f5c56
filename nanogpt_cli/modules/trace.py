"""The operators of one forward pass, as a graph.

A ``Recorder`` sees every operator that PyTorch dispatches and writes down which values it takes and
makes; tensors themselves are never kept. Two passes of the same module can be matched by the keys
of their nodes, so a first pass may decide what a second one measures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

# (path of the running module, which call of it, which operator of that call on activations).
Key = tuple[str, int, int]
# Called after an operator on activations with its key, name, arguments and result.
OnNode = Callable[[Key, str, tuple[Any, ...], Any], None]

# Operators that mix channels or positions; all others act on each entry, or rearrange them.
PRODUCTS = frozenset({
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "matmul", "linear",
    "convolution", "_convolution", "conv1d", "mkldnn_convolution", "_grouped_mm", "_scaled_mm",
})  # fmt: skip


# Index tensors of at most this many entries are kept.
_SMALL = 64


@dataclass(frozen=True)
class Ref:
    """Stands for a tensor among the recorded arguments of an operator."""

    value: int


@dataclass(frozen=True)
class Source:
    """Which entries of a parameter a value holds, up to factors and constants.

    Attributes:
        parameter: the parameter's name.
        offset: position of the value's first entry in the parameter's memory.
        stride: steps in the parameter's memory along each axis of the value.
    """

    parameter: str
    offset: int
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """What one operator made of a tensor.

    Attributes:
        shape: its shape.
        node: index of the node that made it; -1 for what existed before the pass.
        active: whether it depends on the token ids.
        source: the parameter it comes from, if it depends on nothing else.
    """

    shape: tuple[int, ...]
    node: int
    active: bool
    source: Source | None = None

    @property
    def numel(self) -> int:
        """Number of entries."""
        size = 1
        for n in self.shape:
            size *= n
        return size


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes:
        index: its place in the pass.
        name: the operator's name, without the underscore of an in-place variant.
        op: the operator; ``None`` for a tensor that was changed through another view of its memory.
        args, kwargs: its arguments, with a ``Ref`` for each tensor.
        inputs, outputs: values in the order of the arguments and results.
        frame: path of the module that runs it.
        calls: calls of modules that are under way, from the outermost (indices of ``Trace.calls``).
        key: finds this node in another pass; ``None`` if it acts on no activation.
    """

    index: int
    name: str
    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    frame: str
    calls: tuple[int, ...]
    key: Key | None

    @property
    def product(self) -> bool:
        """Whether it multiplies matrices; operators of foreign libraries count as such."""
        return self.name in PRODUCTS or "::" in self.name or self.name.startswith("_scaled_dot")


@dataclass
class Call:
    """One call of a module: the values among its arguments and its results."""

    path: str
    parents: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...] = ()


@dataclass
class Trace:
    """The graph of one pass.

    Attributes:
        nodes, values, calls: operators, what they take and make, and calls of modules, in order.
        constants: small tensors of whole numbers that do not depend on the ids, such as indices.
        ids, output: the token ids, and the module's logits or last state.
    """

    nodes: list[Node] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    constants: dict[int, Tensor] = field(default_factory=dict)
    ids: int = -1
    output: int = -1

    def active(self, node: Node) -> list[int]:
        """The inputs of a node that depend on the token ids."""
        return [v for v in node.inputs if self.values[v].active]

    def maker(self, value: int) -> Node | None:
        """The node that made a value."""
        index = self.values[value].node
        return self.nodes[index] if index >= 0 else None

    @functools.cached_property
    def users(self) -> dict[int, list[Node]]:
        """The nodes that take each value."""
        found: dict[int, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                found.setdefault(value, []).append(node)
        return found


@functools.cache
def _operator(func: Any) -> tuple[str, bool]:
    """An operator's name, and whether it changes an argument in place."""
    namespace, name = func._schema.name.split("::")
    mutable = bool(func._schema.is_mutable)
    if namespace != "aten":
        return f"{namespace}::{name}", mutable
    return (name[:-1] if mutable and name.endswith("_") else name), mutable


def tensors(items: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dictionaries, and in a library's output classes."""
    if isinstance(items, Tensor):
        yield items
    elif isinstance(items, list | tuple):
        for item in items:
            yield from tensors(item)
    elif isinstance(items, dict):
        for item in items.values():
            yield from tensors(item)


class Recorder(TorchDispatchMode):
    """Context that records the operators of a module's forward pass.

    Args:
        module: the module that will run; its submodules get hooks until ``remove``.
        ids: token ids (B, T) with values; ``ids_on`` gives those for the module, whose dependents
            are the activations.
        on_node: see ``OnNode``.
    """

    def __init__(
        self,
        module: nn.Module,
        ids: Tensor,
        on_node: OnNode | None = None,
    ) -> None:
        super().__init__()
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
            self._handles.append(child.register_forward_hook(leave, with_kwargs=True))

    def ids_on(self, device: torch.device) -> Tensor:
        """The token ids on a device, known to the graph."""
        moved = self._ids.to(device)
        self.trace.ids = self._new(moved, -1, active=True)
        return moved

    def remove(self) -> None:
        """Take the hooks off the module."""
        for handle in self._handles:
            handle.remove()

    def value(self, tensor: Tensor) -> int:
        """The value that a tensor holds now."""
        found = self._known.get(tensor)
        if found is None:
            name = self._name(tensor)
            source = Source(name, tensor.storage_offset(), tensor.stride()) if name else None
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
        made = self._new(tensor, index, active=active)
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
            with _disable_current_modes():
                self.trace.constants[value] = tensor.detach().cpu().clone()
        return int(value)

    def _name(self, tensor: Tensor) -> str:
        """The parameter whose memory a tensor shares; empty if there is none."""
        memory = _memory(tensor)
        name = self._parameters.get(memory, "")
        if not name and isinstance(tensor, nn.Parameter) or name and not self._shares(name, memory):
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

    def _enter(self, path: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        self._times[path] = self._times.get(path, 0) + 1
        found = tuple(self.value(t) for t in tensors((args, kwargs)))
        _, parents = self._place()
        self.trace.calls.append(Call(path, parents, found))
        self._stack.append((path, self._times[path], len(self.trace.calls) - 1))

    def _leave(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        _, _, call = self._stack.pop()
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
        result = _grouped(func, args, kwargs) if name == "_grouped_mm" else func(*args, **kwargs)
        active = any(self.trace.values[v].active for v in inputs)
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
            return Source(source.parameter, tensor.storage_offset(), tuple(tensor.stride()))
        if tuple(tensor.shape) == values[value].shape:
            return source
        return _reshaped(source, values[value].shape, tuple(tensor.shape))


def _reshaped(source: Source, before: tuple[int, ...], after: tuple[int, ...]) -> Source | None:
    """The source of a copy's view: known where an axis was dropped, or two were exchanged."""
    if len(before) == 2 and after == before[::-1]:
        return Source(source.parameter, source.offset, source.stride[::-1])
    return Source(source.parameter, source.offset, ())


def replay(trace: Trace, value: int, ids: Tensor | None = None) -> Tensor:
    """Compute a value on the CPU that was made on the device ``meta``.

    Libraries ask for single numbers, such as whether positions follow each other. They depend on no
    weight.

    Args:
        trace: the graph so far.
        value: what to compute.
        ids: the token ids; without them nothing that depends on them can be computed.

    Raises:
        ValueError: it depends on more than the token ids.
    """
    if value == trace.ids and ids is not None:
        return ids.cpu()
    if value in trace.constants:
        return trace.constants[value]
    node = trace.maker(value)
    if node is None or node.op is None:
        raise ValueError("its course depends on values of weights, which are not there")

    def filled(items: Any) -> Any:
        if isinstance(items, Ref):
            return replay(trace, items.value, ids)
        if isinstance(items, tuple):
            return [filled(item) for item in items]
        if isinstance(items, dict):
            return {name: filled(item) for name, item in items.items()}
        return torch.device("cpu") if isinstance(items, torch.device) else items

    with _disable_current_modes():
        result = node.op(*filled(node.args), **filled(node.kwargs))
    results = list(tensors(result))
    return results[node.outputs.index(value)]


def _grouped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A product with a matrix for each group of rows; on ``meta`` PyTorch has it for bfloat16."""
    if not args[0].is_meta:
        return func(*args, **kwargs)
    half = [item.bfloat16() if isinstance(item, Tensor) and item.is_floating_point() else item
            for item in args]  # fmt: skip
    return func(*half, **kwargs).to(args[0].dtype)


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
