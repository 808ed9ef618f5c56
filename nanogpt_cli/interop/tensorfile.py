"""Writing safetensors one tensor at a time.

The library's writer needs all tensors in memory at once, but the format does not: it is eight bytes
with the header's length, a JSON header with the offsets, then the tensors one after another
(https://github.com/huggingface/safetensors, "Format"). Reading is left to the library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 8
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A float32 tensor that is computed when it is written.

    Attributes:
        shape: shape of the tensor.
        get: computes it.
    """

    shape: tuple[int, ...]
    get: Callable[[], Tensor]


def write(path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
    """Write ``entries`` in their order to ``path``.

    Raises:
        AssertionError: a tensor has another shape than its entry, or another type than float32.
    """
    header = _header(entries, metadata)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        tensors = ahead(entry.get for entry in entries.values())
        for (name, entry), tensor in zip(entries.items(), tensors, strict=True):
            assert tuple(tensor.shape) == entry.shape, name
            assert tensor.dtype == torch.float32, name
            file.write(little_endian(tensor).data)


def ahead(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of ``calls`` in order, each computed while the one before it is being used.

    Two results are alive at a time, never more.
    """
    pending: Future[T] | None = None
    with ThreadPoolExecutor(max_workers=1) as pool:
        for call in calls:
            following = pool.submit(call)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


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
    """A tensor's values as a little-endian numpy array; no copy where that is the byte order."""
    return np.ascontiguousarray(tensor.contiguous().numpy(), dtype="<f4")
