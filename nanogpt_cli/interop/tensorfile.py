"""Writing safetensors one tensor at a time.

The library's writer wants all tensors in memory at once; the format does not: eight bytes of
header length, a JSON header with the offsets, then the tensors one after another
(https://github.com/huggingface/safetensors, "Format"). Reading is left to the library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """A float32 tensor that will be asked for when its turn comes.

    Attributes:
        shape: of the tensor.
        get: gives it.
    """

    shape: tuple[int, ...]
    get: Callable[[], Tensor]


def write(path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
    """Write ``entries`` in their order to ``path``.

    Raises:
        AssertionError: an entry gives another shape or type than it announced.
    """
    header = _header(entries, metadata)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name, entry in entries.items():
            tensor = entry.get()
            assert tuple(tensor.shape) == entry.shape, name
            assert tensor.dtype == torch.float32, name
            file.write(little_endian(tensor).data)


def _header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    records: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, entry in entries.items():
        end = offset + 4 * math.prod(entry.shape)
        records[name] = {
            "dtype": "F32", "shape": list(entry.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    header = json.dumps(records, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % _ALIGNMENT)


def little_endian(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A contiguous tensor's values as a numpy array, low byte first; no copy on usual machines."""
    return np.ascontiguousarray(tensor.contiguous().numpy(), dtype="<f4")
