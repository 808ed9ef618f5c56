"""Writing torch's archives one tensor at a time.

``torch.save`` and ``torch.export.save`` need all tensors in memory at once, but their format does
not: it is an uncompressed zip file whose ``data.pkl`` refers to the members ``data/0``, ``data/1``,
... with the values (torch's notes on serialization, "Serialized file format"). The container is
written by torch's own writer, which takes care of alignment, checksums and versions.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_cli.training.checkpoints.tensor_files import LazyTensor, computed

_PROTOCOL = 2  # as in torch.save


class Archive:
    """An archive being written, as a context manager."""

    def __init__(self, path: Path, *, version: int | None = None) -> None:
        # Through a Python file a full disk is an OSError; torch's writer alone would only report a
        # wrong position.
        self._out = path.open("wb")
        self._file = torch._C.PyTorchFileWriter(self._out)
        if version is not None:
            self._file.set_min_version(version)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Needed after an error as well: otherwise torch's destructor does it and ends the process.
        ignored = () if error is None else (RuntimeError,)
        with self._out, contextlib.suppress(*ignored):
            self._file.write_end_of_file()

    def add(self, name: str, data: bytes) -> None:
        """Add a member with these bytes."""
        self._file.write_record(name, data, len(data))

    def add_tensor(self, name: str, tensor: Tensor) -> None:
        """Add a member with the values of a contiguous tensor, in this machine's byte order."""
        # The writer starts at the beginning of a storage; it ignores rows cut off at the end.
        whole = tensor if tensor.storage_offset() == 0 else tensor.clone()
        nbytes = tensor.numel() * tensor.itemsize
        self._file.write_record(name, whole.untyped_storage(), nbytes)  # type: ignore[arg-type]


def save(value: Any, path: Path) -> None:
    """Write what ``torch.save`` would write for a value whose tensors are ``LazyTensor``.

    A lazy tensor that occurs twice is stored as one tensor.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    with Archive(path) as archive:
        archive.add("data.pkl", file.getvalue())
        archive.add("byteorder", sys.byteorder.encode())
        for number, tensor in enumerate(computed(pickler.tensors)):
            archive.add_tensor(f"data/{number}", tensor)


@dataclass(frozen=True)
class _Storage:
    """Represents a member of the archive in the pickle."""

    key: str
    numbers: int


class _Pickler(pickle.Pickler):
    """Writes an ``LazyTensor`` as the tensor it computes; ``tensors`` collects them in order."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=_PROTOCOL)
        self.tensors: list[LazyTensor] = []

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return "storage", torch.FloatStorage, obj.key, "cpu", obj.numbers
        return None

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, LazyTensor):
            return NotImplemented
        storage = _Storage(str(len(self.tensors)), math.prod(obj.shape))
        self.tensors.append(obj)
        strides = tuple(math.prod(obj.shape[axis + 1 :]) for axis in range(len(obj.shape)))
        hooks: OrderedDict[str, Any] = OrderedDict()
        return torch._utils._rebuild_tensor_v2, (storage, 0, obj.shape, strides, False, hooks)
