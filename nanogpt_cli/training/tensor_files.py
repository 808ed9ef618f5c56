"""Safetensors files: opening them, and writing them by all processes that hold a slice.

Where a tensor lies in a file follows from names, types and shapes alone. FSDP2 splits tensors by
rows, and rows are one stretch of bytes, so each rank writes its own rows into their place: nobody
ever holds a whole split tensor, and what comes out is one ordinary file of whole tensors, which any
number of processes and any other program can read, ``torch.distributed.checkpoint`` included
(``HuggingFaceStorageReader``). Its own writers were not taken: one keeps a pickled index, the other
leaves a file per rank that has to be put together in a second pass.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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


def _layout(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """The file's beginning, and where each tensor's bytes start in the file.

    Wide types come first, so that every tensor is aligned.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
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
