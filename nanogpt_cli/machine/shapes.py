"""Computing with shapes alone: tensors without memory, also as a CUDA device would compute.

PyTorch cannot make fake tensors of a device it was not built for that autograd would take. A CUDA
device is therefore imitated: tensors lie on the device "meta", say that they lie on CUDA, and what
autocast and attention do there is done to them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nanogpt_cli.machine.device import Device

_DEVICE_OF = Tensor.device.__get__
# What autocast computes in half precision, and in float32.
_NARROW = {F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__}
_WIDE = {F.cross_entropy, F.layer_norm}


@contextlib.contextmanager
def alone(device: Device) -> Iterator[None]:
    """Within, tensors are made without memory, and computed with as on ``device``."""
    with contextlib.ExitStack() as stack:
        if device.device.type == "cuda":
            stack.enter_context(torch.device("meta"))
            stack.enter_context(_Cuda())
        else:
            stack.enter_context(FakeTensorMode())
            stack.enter_context(torch.device(device.device))
        yield


@contextlib.contextmanager
def autocast(device: Device) -> Iterator[None]:
    """``device.autocast()``, within ``alone``."""
    if device.device.type != "cuda" or device.precision not in ("bf16", "fp16"):
        with device.autocast():
            yield
        return
    dtype = torch.bfloat16 if device.precision == "bf16" else torch.float16
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


class _Cuda(TorchFunctionMode):
    """Answers and acts as CUDA."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called in place of every function of PyTorch."""
        kwargs = dict(kwargs or {})
        if func == _DEVICE_OF:
            return torch.device("cuda")
        if "device" in kwargs:  # of a new tensor
            kwargs["device"] = torch.device("meta")
        if func is F.scaled_dot_product_attention:
            return _flash(*args, **kwargs)
        if torch.is_autocast_enabled("cuda"):
            if func in _NARROW:
                args = [x.to(torch.get_autocast_dtype("cuda")) if _float(x) else x for x in args]
            elif func in _WIDE:
                args = [x.float() if _float(x) else x for x in args]
        return func(*args, **kwargs)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, *,
    is_causal: bool, scale: float, dropout_p: float, enable_gqa: bool,  # noqa: ARG001
) -> Tensor:  # fmt: skip
    """Attention by the kernel that CUDA takes in half precision, which writes no scores.

    It takes fewer heads of keys and values than of queries (``enable_gqa``) as they are.
    """
    found: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        q, k, v, dropout_p, is_causal, scale=scale
    )[0]
    return found


def _float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
