"""A GPU for tests on machines without one: tensors that say they are on it and compute on the CPU.

Code that asks ``x.device`` takes its way for GPUs, with real numbers, which a run on the CPU can be
compared with. As on a GPU, tensors of both sides must not be mixed, and a value that the host reads
makes it wait: ``Simulated.waits`` tells the operations that did. A captured graph repeats what was
computed in it, on the same memory.

What cannot be seen this way: the numbers of real kernels, their limits and their speed; autocast,
which sees PyTorch's own idea of the device; compiled code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

aten: Any = torch.ops.aten
GPU = torch.device("cuda", 0)
_MEMORY = 8 << 30
# Operations whose result is a number for the host, or has a size that only its values tell.
_READS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
    aten.equal.default, aten.is_nonzero.default, aten._unique2.default, aten.bincount.default,
}  # fmt: skip
# May have tensors of both sides: copies, and indices that a GPU is given by the host.
_MIXED = {
    aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put_.default,
    aten._index_put_impl_.default,
}  # fmt: skip


class GPUTensor(Tensor):
    """A tensor on the simulated GPU; ``held`` has its numbers.

    PyTorch itself takes it for a tensor of the ``meta`` device, so nothing reads it unseen.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> GPUTensor:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device="meta", requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    device = GPU  # type: ignore[assignment]
    is_cuda = True  # type: ignore[assignment]
    is_meta = False  # type: ignore[assignment]

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        """A copy of numbers of the host."""
        return torch.tensor(data, dtype=dtype or self.dtype, device=GPU)

    def __getitem__(self, key: Any) -> Tensor:
        return super().__getitem__(_indices(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_indices(key), value)

    def tolist(self) -> Any:
        """The numbers, for which the host waits."""
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"GPUTensor({self.held!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        simulated = Simulated.current
        assert simulated is not None, "a tensor of the simulated GPU outlived it"
        return simulated.compute(func, args, kwargs or {})


def _indices(key: Any) -> Any:
    """Lists as tensors of the GPU, to which PyTorch would copy them."""
    if isinstance(key, list):
        return torch.tensor(key, device=GPU)
    return tuple(map(_indices, key)) if isinstance(key, tuple) else key


class Simulated(TorchDispatchMode):
    """The GPU while it is there.

    Attributes:
        waits: operations for which the host waited until all earlier work was done.
        graph: what is being captured.
    """

    current: Simulated | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.graph: Graph | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.compute(func, args, kwargs or {})

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation where its tensors lie, or where its ``device`` says."""
        leaves = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        there = [x for x in leaves if isinstance(x, GPUTensor)]
        device = kwargs.get("device")
        device = torch.device(device) if device is not None else None
        # "meta" is what PyTorch's own code reads as the device of a tensor of ours.
        if not there and (device is None or device.type not in ("cuda", "meta")):
            return func(*args, **kwargs)
        assert not any(x.device.type == "meta" for x in leaves), f"{func}: numbers were lost"
        here = [x for x in leaves if not isinstance(x, GPUTensor)]
        if there and any(x.dim() for x in here) and func not in _MIXED:
            raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
        to_host = func is aten._to_copy.default and device is not None and device.type == "cpu"
        to_host |= func is aten.copy_.default and not isinstance(args[0], GPUTensor)
        to_gpu = func in (aten._to_copy.default, aten.copy_.default) and bool(here) and not to_host
        # Without ``non_blocking``, PyTorch waits for the device's earlier work.
        waits = to_gpu and not (kwargs.get("non_blocking") or args[2:] == (True,))
        booleans = func is aten.index.Tensor and any(
            x.dtype == torch.bool for x in args[1] if x is not None
        )
        if func in _READS or booleans or to_host or waits:
            self.waits.append(str(func))
            assert self.graph is None, f"{func} waits while a graph is captured"
        if device is not None:
            kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"} | {"device": "cpu"}

        def run() -> Any:
            return func(*_held(args), **_held(kwargs))

        out = run()
        if self.graph is not None:
            self.graph.note(run, out)
        if to_host:
            return args[0] if func is aten.copy_.default else out
        wrapped = tree_map_only(Tensor, GPUTensor, out)
        if func is aten._to_copy.default or not there:
            return wrapped
        return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _held(values: Any) -> Any:
    return tree_map_only(GPUTensor, lambda x: x.held, values)


class Graph:
    """``torch.cuda.CUDAGraph``: computes again what it has seen, into the same memory."""

    def __init__(self) -> None:
        self.steps: list[tuple[Callable[[], Any], list[Tensor]]] = []

    def note(self, run: Callable[[], Any], out: Any) -> None:
        """Keep an operation of the capture and where its results lie."""
        self.steps.append((run, [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]))

    def replay(self) -> None:
        """Run the operations again."""
        for run, kept in self.steps:
            found = [x for x in tree_flatten(run())[0] if isinstance(x, Tensor)]
            for old, new in zip(kept, found, strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


_TO = Tensor.to


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``Tensor.to``, which asks the missing library for the number of a plain "cuda"."""
    args = tuple(GPU if a in ("cuda", torch.device("cuda")) else a for a in args)
    return _TO(x, *args, **kwargs)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """``scaled_dot_product_attention`` by its definition: its kernels ask for the real device."""
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ v


def _enter(mode: Any) -> None:
    """Without gradients only: tensors of a subclass cannot be ones of inference."""
    mode.before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)


def _exit(mode: Any, *_: object) -> None:
    torch.set_grad_enabled(mode.before)


@contextlib.contextmanager
def simulated() -> Iterator[Simulated]:
    """A GPU of 8 GiB with compute capability 9.0, as ``torch.cuda`` would show it."""
    gpu = Simulated()
    nothing = contextlib.nullcontext

    @contextlib.contextmanager
    def capturing(graph: Graph, **_: object) -> Iterator[None]:
        gpu.graph = graph
        try:
            yield
        finally:
            gpu.graph = None

    stream = SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None)
    known = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "get_device_name": lambda *_: "Simulated", "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: SimpleNamespace(
            name="Simulated", total_memory=_MEMORY, major=9, minor=0, multi_processor_count=8,
            uuid="0",
        ),
        "mem_get_info": lambda *_: (_MEMORY, _MEMORY), "memory_reserved": lambda *_: 0,
        "memory_stats": lambda *_: {}, "max_memory_allocated": lambda *_: 0,
        "synchronize": lambda *_: None, "default_generators": (torch.default_generator,),
        "is_bf16_supported": lambda *_, **__: True, "CUDAGraph": Graph, "graph": capturing,
        "Stream": lambda *_: stream, "current_stream": lambda *_: stream,
        "stream": lambda *_: nothing(), "device": lambda *_: nothing(),
        "set_stream": lambda *_: None, "_lazy_init": lambda: None,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, gpu:
        for name, value in known.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(Tensor, "pin_memory", lambda x, *_: x)
        patch.setattr(Tensor, "to", _to)
        patch.setattr(torch.inference_mode, "__enter__", _enter)
        patch.setattr(torch.inference_mode, "__exit__", _exit)
        patch.setattr(F, "scaled_dot_product_attention", _attention)
        patch.setattr(Simulated, "current", gpu)
        # Else ``torch.tensor`` hides its copy to the device from the mode.
        torch._C._set_only_lift_cpu_tensors(True)
        # A moved parameter stays the same object, or a tied head would lose its table.
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            yield gpu
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
            torch._C._set_only_lift_cpu_tensors(False)
