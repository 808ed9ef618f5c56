"""What one micro-batch and one update compute and move, counted without computing it.

The run's own code is executed on tensors without memory (``machine/shapes.py``), and every
operation is noted with its FLOPs and with the tensors it reads and writes; ``kernels.py`` says
which of them are one kernel.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nanogpt_cli.model.attention import CausalSelfAttention, GroupedAttention
from nanogpt_cli.model.gpt import GPT, Block, LlamaBlock
from nanogpt_cli.model.mlp import MLP, GatedMLP, PlainMLP
from nanogpt_cli.model.rms_norm import RMSNorm
from nanogpt_cli.training.forecasts.kernels import LONG, Kernel, Node, Value, fuse

EMBEDDINGS: Final = "embeddings"
NORMS: Final = "norms and residuals"
ATTENTION_PRODUCTS: Final = "attention products"
ATTENTION: Final = "attention"
MLP_PRODUCTS: Final = "MLP products"
ACTIVATION: Final = "activation"
HEAD: Final = "head and loss"
GRADIENT_SUM: Final = "gradient sum"
GRADIENT_NORM: Final = "gradient norm"
OPTIMIZER: Final = "optimizer"

# What autograd numbers the nodes that add to a gradient.
_ACCUMULATES = 2**64 - 1
_aten = torch.ops.aten
_ATTENTION_OPS = {
    _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_backward,
}
# These read of their first tensor as much as they return.
_PICKING = {_aten.embedding, _aten.gather, _aten.index, _aten.index_select}
# Whose values are copies only to PyTorch.
_ALIASES = {_aten._unsafe_view, _aten.lift_fresh}


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what is computed while it is entered; ``kernels`` afterwards.

    Args:
        model: whose modules tell the parts of the forward pass; autograd's numbers of its nodes
            tell those of the backward pass.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._nodes: list[Node] = []
        self._values: dict[int, Value] = {}  # by storage
        self._alive: list[Tensor] = []  # so that no storage gets the place of another
        self._outer = EMBEDDINGS  # the part of what is in no module
        self._inside: list[str] = []
        self._starts: list[tuple[int, str]] = []
        self._results: list[Value] = []
        self.backward = False
        self.fusing = True
        for name, module in model.named_modules():
            part = _part(name, module)
            if part:
                module.register_forward_pre_hook(
                    self._enter(part, isinstance(module, Block | LlamaBlock))
                )
                module.register_forward_hook(self._leave)
        self._mark()

    def _enter(self, part: str, block: bool) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, __: Any) -> None:
            self._inside.append(part)
            if block:
                self._outer = HEAD
            self._mark()

        return hook

    def _leave(self, _: nn.Module, __: Any, ___: Any) -> None:
        self._inside.pop()
        self._mark()

    def _mark(self) -> None:
        number = torch._C._autograd._get_sequence_nr()
        self._starts.append((number, self._inside[-1] if self._inside else self._outer))

    def update(self, part: str) -> None:
        """From now on operations belong to this part, and each is a kernel."""
        self.fusing, self.backward = False, True
        self._starts = [(0, part)]

    def keep(self, *tensors: Tensor) -> None:
        """Say that tensors are results, whose writing counts."""
        self._results += [self._value(t) for t in tensors]

    def crossing(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of what the forward pass makes and the backward pass reads."""
        return [
            (value.shape, value.dtype)
            for value in self._made()
            if not value.backward and any(self._nodes[n].backward for n in value.readers)
        ]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called in place of every operation."""
        del types
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        out = func(*args, **kwargs)
        made = list(_tensors(out))
        self._alive += made
        if not made and not func._schema.is_mutable:
            return out
        name = func.overloadpacket
        if func.is_view or name in _ALIASES:
            for tensor in made:
                self._values[_storage(tensor)] = self._value(given[0])
        else:
            self._note(func, name, given, made, args, kwargs, out)
        return out

    def _value(self, tensor: Tensor) -> Value:
        """The present content of a tensor's storage."""
        found = self._values.get(_storage(tensor))
        if found is None:
            self._alive.append(tensor)
            size = tensor.untyped_storage().nbytes()
            found = Value(tuple(tensor.shape), tensor.dtype, size)
            self._values[_storage(tensor)] = found
        return found

    def _note(
        self, func: Any, name: Any, given: list[Tensor], made: list[Tensor], *call: Any
    ) -> None:
        args, kwargs, out = call
        node_of_autograd = torch._C._current_autograd_node()
        number = node_of_autograd._sequence_nr() if node_of_autograd else None
        adds_up = number == _ACCUMULATES
        kind, flops = "memory", 0.0
        if name in flop_registry:
            kind = "attention" if name in _ATTENTION_OPS else "product"
            flops = float(flop_registry[name](*args, **kwargs, out_val=out))
            if kind == "attention":
                flops *= _causal_share(given[0])
        fused = kind == "memory" and self.fusing and not adds_up
        reads = {}
        for place, tensor in enumerate(given):
            value = self._value(tensor)
            if fused and value.wider_than is not None:
                value = value.wider_than
            count = tensor.numel()
            if name in _PICKING and place == 0:
                count = min(count, made[0].numel())
            size = min(count * value.dtype.itemsize, value.bytes)
            reads[id(value), int(tensor.storage_offset()), count] = value, size
        index = len(self._nodes)
        level = max((value.level for value, _ in reads.values()), default=0)
        writes = []
        for tensor in _written(func, args, kwargs) or made:
            new = Value(tuple(tensor.shape), tensor.dtype, tensor.numel() * tensor.itemsize)
            ends = not fused or any(t.numel() >= LONG * tensor.numel() for t in given)
            new.level, new.maker, new.backward = level + ends, index, self.backward
            if name is _aten._to_copy and tensor.itemsize > given[0].itemsize:
                new.wider_than = self._value(given[0])
            self._values[_storage(tensor)] = new
            writes.append(new)
        for value, _ in reads.values():
            value.readers.add(index)
        part = GRADIENT_SUM if adds_up else self._part_of(number)
        if name is _aten._to_copy and fused:  # autocast's, of what another part has made
            maker = self._value(given[0]).maker
            part = self._nodes[maker].part if maker >= 0 and self._nodes[maker].fused else part
        self._nodes.append(Node(part, kind, fused, self.backward, level, flops, reads, writes))

    def _part_of(self, number: int | None) -> str:
        """The part now, or that of an autograd node."""
        if number is None:
            return self._starts[-1][1]
        place = bisect.bisect_right(self._starts, number, key=lambda start: start[0])
        return self._starts[max(0, place - 1)][1]

    def _made(self) -> Iterator[Value]:
        return (value for node in self._nodes for value in node.writes)

    def kernels(self) -> list[Kernel]:
        """Everything noted, fused; what leaves no result is left out."""
        return fuse(self._nodes, {id(value) for value in self._results})


def _part(name: str, module: nn.Module) -> str:
    """The part of the step that a module is, if it is one."""
    if isinstance(module, nn.Linear) and "attn." in name:
        return ATTENTION_PRODUCTS
    if isinstance(module, nn.Linear) and ".mlp." in name:
        return MLP_PRODUCTS
    kinds = {
        nn.Embedding: EMBEDDINGS, nn.LayerNorm: NORMS, RMSNorm: NORMS, Block: NORMS,
        LlamaBlock: NORMS, CausalSelfAttention: ATTENTION, GroupedAttention: ATTENTION,
        MLP: ACTIVATION, GatedMLP: ACTIVATION, PlainMLP: ACTIVATION,
    }  # fmt: skip
    return kinds.get(type(module), "")


def _causal_share(q: Tensor) -> float:
    """Of all pairs of positions of (B, H, T, D), those that causal attention computes."""
    T = q.shape[-2]
    return (T + 1) / (2 * T)


def _storage(tensor: Tensor) -> int:
    found: int = tensor.untyped_storage()._cdata
    return found


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation changes in place."""
    found: list[Tensor] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "grads":  # which fused AdamW changes only if it has a loss scale
            continue
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            found += _tensors(given)
    return found
