"""GPUs by name, with the figures of their data sheets, for forecasts on machines without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.machine.device import PEAK_FLOPS, Device


@dataclass(frozen=True)
class GPU:
    """What a data sheet says of a GPU.

    Attributes:
        name: as in ``PEAK_FLOPS``.
        memory: bytes.
        bandwidth: of the memory, bytes/s.
        link: to the other GPUs of a machine, bytes/s in one direction (half of what data sheets
            say, who add both).
        hopper: whether it is of the generation whose attention kernels lag behind the products.
    """

    name: str
    memory: float
    bandwidth: float
    link: float
    hopper: bool = False

    @property
    def peak_flops(self) -> float:
        """Dense bf16 products, FLOP/s."""
        return PEAK_FLOPS[self.name]

    def device(self) -> Device:
        """A run's device on such a GPU: bf16, compiled."""
        return Device(torch.device("cuda"), "bf16", True, self.name, self.peak_flops, ())


# NVIDIA's data sheets: H100 and H200 Tensor Core GPU (SXM), A100 80GB (SXM), their variants H800
# and A800 with a slower NVLink, L40S (PCIe 4.0), GeForce RTX 4090 and 3090 (PCIe 4.0).
GPUS: Final = {
    gpu.name: gpu
    for gpu in (
        GPU("H200", 141e9, 4.8e12, 450e9, hopper=True),
        GPU("H100", 80e9, 3.35e12, 450e9, hopper=True),
        GPU("H800", 80e9, 3.35e12, 200e9, hopper=True),
        GPU("A100", 80e9, 2.039e12, 300e9),
        GPU("A800", 80e9, 2.039e12, 200e9),
        GPU("L40S", 48e9, 864e9, 32e9),
        GPU("RTX 4090", 24e9, 1.008e12, 32e9),
        GPU("RTX 3090", 24e9, 936e9, 32e9),
    )
}


def find(name: str) -> GPU:
    """The GPU of this name; case, spaces and the brand do not matter.

    Raises:
        UserError: it is not known.
    """
    known = {_plain(gpu.name): gpu for gpu in GPUS.values()}
    wanted = _plain(name)
    found = known.get(wanted) or known.get(f"rtx{wanted}")
    if found:
        return found
    near = nearest(name, GPUS)
    raise UserError(
        f"no data of a GPU called {name!r}" + (f"; did you mean {near!r}?" if near else ""),
        f"known: {', '.join(GPUS)}; the number of GPUs is given with --gpus",
    )


def _plain(name: str) -> str:
    plain = name.lower().replace(" ", "").replace("-", "")
    return plain.removeprefix("nvidia").removeprefix("geforce")
