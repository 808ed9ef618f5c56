"""Safetensors files: opening them, and writing them without holding all tensors in memory.

The format is eight bytes with the header's length, a JSON header with the offsets, then the tensors
one after another (https://github.com/huggingface/safetensors, "Format"). Where a tensor lies
follows from names, types and shapes alone, so two writers need less memory than the library's:

- ``write``: FSDP2 splits tensors by rows, and rows are one stretch of bytes, so each rank writes
  its own rows into their place. The result is one ordinary file, which any other program can read,
  ``torch.distributed.checkpoint`` included (``HuggingFaceStorageReader``). Its own writers were not
  taken: one keeps a pickled index, the other leaves a file per rank that needs a second pass.
- ``write_one_by_one``: an export computes a tensor while the one before it is being written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.machine import distributed
from nanogpt_cli.machine.distributed import Group

_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
# The library takes a minute and 1.5 GB for a header of 85 MB; GPT-2 XL's has 60 kB.
_LARGEST_HEADER = 1 << 23
T = TypeVar("T")


@contextlib.contextmanager
def opened(path: Path, device: str | torch.device = "cpu") -> Iterator[Any]:
    """A safetensors file as the library's own object; its errors inside the block are put in words.

    Args:
        path: the file.
        device: where tensors go; on the CPU they are mapped from the file, not copied.

    Raises:
        UserError: it is missing, no regular file, or damaged.
    """
    _check_header(path)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a readable safetensors file: {reason}") from None


def _check_header(path: Path) -> None:
    """Compare the length of the header with the file's and with what any model needs."""
    with foreign_files.opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= size - 8:
        raise UserError(
            f"{path} is not a readable safetensors file: a header of {length:,} bytes does not fit "
            f"into its {size:,}"
        )
    if length > _LARGEST_HEADER:
        raise UserError(
            f"{path} is refused: its header has {length:,} bytes",
            f"a model's header has less than {_LARGEST_HEADER:,}",
        )


def shapes(file: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a file that ``opened`` gave, without reading the tensors."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def n_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write(path: Path, tensors: Mapping[str, Tensor], group: Group = Group()) -> None:  # noqa: B008
    """Write whole tensors, of which ``tensors`` may hold this rank's slices (``DTensor``).

    Every rank must call it, and must see the same file.

    Raises:
        OSError: this rank could not write.
        UserError: another one could not.
    """
    header, places = _layout(tensors)
    if group.leads:
        with path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + n_bytes(tensors))
    group.meet()
    error = None
    try:
        if group.leads or any(distributed.is_split(tensor) for tensor in tensors.values()):
            _fill(path, tensors, places, group)
    except OSError as refused:
        error = refused
    failed = group.any(error is not None)
    if error is not None:
        raise error
    if failed:
        raise UserError(
            f"another process could not write its slice of {path}",
            'with train.parallel = "fsdp" all machines must see the run folder, and it needs room',
        )


@dataclass(frozen=True)
class LazyTensor:
    """A float32 tensor that is computed when it is written.

    Attributes:
        shape: shape of the tensor.
        get: computes it, contiguous and on the CPU.
    """

    shape: tuple[int, ...]
    get: Callable[[], Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """Always float32."""
        return torch.float32


def write_one_by_one(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write tensors that are computed on the way.

    Raises:
        AssertionError: a tensor is not what its ``LazyTensor`` announced.
    """
    header, places = _layout(tensors)
    with path.open("wb") as file:
        file.write(header)
        for tensor in computed(tensors[name] for name in places):
            file.write(little_endian(tensor).data)


def computed(tensors: Iterable[LazyTensor]) -> Iterator[Tensor]:
    """The value of each tensor in turn, computed as in ``ahead``.

    Raises:
        AssertionError: a tensor is not what its ``LazyTensor`` announced.
    """
    tensors = list(tensors)
    for lazy, tensor in zip(tensors, ahead(lazy.get for lazy in tensors), strict=True):
        assert tuple(tensor.shape) == lazy.shape, (tensor.shape, lazy.shape)
        assert tensor.dtype == lazy.dtype, tensor.dtype
        yield tensor


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


def little_endian(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A tensor's values as a little-endian numpy array; no copy where that is the byte order."""
    return np.ascontiguousarray(tensor.contiguous().numpy(), dtype="<f4")


def _layout(tensors: Mapping[str, Tensor | LazyTensor]) -> tuple[bytes, dict[str, int]]:
    """The file's beginning, and where each tensor's bytes start in the file, in file order.

    Wide types come first, so that every tensor is aligned.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        tensor, start = tensors[name], end
        end += math.prod(tensor.shape) * tensor.dtype.itemsize
        entries[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        places[name] = start
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in places.items()}


def _fill(path: Path, tensors: Mapping[str, Tensor], places: dict[str, int], group: Group) -> None:
    """Write this rank's rows of split tensors; the first rank writes those that are not split."""
    with path.open("r+b") as file:
        for name, tensor in tensors.items():
            first, rows = distributed.rows(tensor)
            if rows.numel() and (group.leads or first):
                skipped = first * tensor.shape[1:].numel()
                file.seek(places[name] + skipped * tensor.element_size())
                flat = rows.detach().cpu().contiguous().view(-1)
                file.write(flat.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
