"""``torch.load`` for untrusted files.

``weights_only=True`` prevents code execution, but not exhaustion of memory: a compressed archive
may unpack to thousands of times its size, a tensor of stride 0 may claim any shape, and
``bytearray`` may be called with any number. So the archive's table and the pickle's instructions
are checked before torch reads the file, and each tensor is checked against its storage afterwards.

PyTorch before 1.6 wrote no archive but a row of pickles (a magic number, the format's version,
facts about the machine, the value, the keys of its storages) and the storages after them.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor

from nanogpt_cli import foreign_files, safe_pickle
from nanogpt_cli.errors import UserError, in_words
from nanogpt_cli.interop.foreign import TensorSource, label

_STORAGES: Final = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte",
                    "Bool")  # fmt: skip
# numpy scalars occur in checkpoints that store a loss as one.
_NUMPY: Final = ("numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray scalar",
                 "_codecs encode")  # fmt: skip
ALLOWED: Final = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_tensor_v2",
     "torch._utils _rebuild_parameter", *_NUMPY,
     *(f"torch {name}Storage" for name in _STORAGES)}
)  # fmt: skip
_MOST_MEMBERS: Final = 200_000
# Bytes of the archive's table; the entry of a tensor takes about 150.
_LARGEST_TABLE: Final = 1 << 25
# What an old file begins with: torch.serialization.MAGIC_NUMBER as a pickle of protocol 2.
_OLD: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLES_AFTER_MAGIC: Final = 4
# Tensors may share or repeat values, but not pretend to be far more than the file holds.
_MOST_REPETITION: Final = 16
_SMALL: Final = 1 << 26


def load(path: Path) -> Any:
    """The object in a file that ``torch.save`` wrote; the storages of an archive are memory-mapped.

    Raises:
        UserError: it is missing, damaged, compressed, or holds anything but plain tensors and
            values; nothing in it is executed.
    """
    with foreign_files.opened(path) as file:
        old = file.read(len(_OLD)) == _OLD
    if old:
        _check_old(path)
    else:
        _check_archive(path)
    try:
        with (
            torch.serialization.safe_globals(_numpy_scalars()),
            warnings.catch_warnings(action="ignore"),  # about damage, which is reported below
        ):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=not old)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path} is not a readable PyTorch file: {in_words(error)}") from None


def _check_old(path: Path) -> None:
    with foreign_files.opened(path) as file:
        head = io.BufferedReader(cast(io.RawIOBase, file)).read(safe_pickle.LARGEST)
    at = len(_OLD)
    for _ in range(_PICKLES_AFTER_MAGIC):
        at += safe_pickle.scan(head[at:], str(path), ALLOWED)


def _check_archive(path: Path) -> None:
    try:
        size = foreign_files.check(path).st_size
        _check_table(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, size, members)
            pickles = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > safe_pickle.LARGEST:
                raise UserError(f"{path} is not a file of torch.save: it needs one data.pkl")
            safe_pickle.scan(archive.read(pickles[0]), str(path), ALLOWED)
            if (damaged := archive.testzip()) is not None:  # torch itself checks no checksums
                raise UserError(f"{path} is damaged: the checksum of {damaged!r:.80} is wrong")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except UserError:
        raise
    except Exception as error:  # zipfile, too, raises many kinds for a damaged file
        raise UserError(
            f"{path} is not a readable PyTorch file: {in_words(error)}",
            "load it with the PyTorch that wrote it and torch.save it again",
        ) from None


def _check_table(path: Path) -> None:
    """Limit the size of the archive's table, because ``zipfile`` reads all of it."""
    with foreign_files.opened(path) as file:
        end: Any = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end is not None and end[zipfile._ECD_SIZE] > _LARGEST_TABLE:  # type: ignore[attr-defined]
        raise UserError(f"{path} has a table of {end[5]:,} bytes: not a model")


def _check_members(path: Path, size: int, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > _MOST_MEMBERS:
        raise UserError(f"{path} has {len(members):,} members: not a model")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise UserError(
                f"{path} is refused: its member {member.filename!r:.80} is compressed",
                "torch.save never compresses; such a file can unpack to any size",
            )
        if ".." in member.filename.split("/") or member.filename.startswith("/"):
            raise UserError(f"{path} is refused: member {member.filename!r:.80} leaves the archive")
    if sum(member.file_size for member in members) > size:
        raise UserError(f"{path} is refused: its members claim more bytes than the file has")


def _numpy_scalars() -> list[Any]:
    import numpy as np
    from numpy._core.multiarray import scalar

    plain = [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "f2", "i4", "i8", "b1"))]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), *plain]


def open_files(paths: list[Path]) -> TensorSource:
    """The state dicts in one or several files as one source.

    Raises:
        UserError: as ``load`` and ``tensors_of``, or two files hold the same tensor.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        found = tensors_of(load(path), path)
        if twice := next((name for name in found.shapes if name in tensors), ""):
            raise UserError(f"{path} holds {twice!r:.100}, which another file holds as well")
        tensors |= {name: found.get(name) for name in found.shapes}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return TensorSource(label(paths), shapes, tensors.__getitem__)


def tensors_of(value: Any, path: Path) -> TensorSource:
    """A state dict as a source of tensors, each checked against its storage.

    A tensor may be a view of another's values, in any order and with gaps.

    Raises:
        UserError: ``value`` is not a dict of plain tensors.
    """
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{path} holds no weights: a dict of tensors is expected")
    claimed = 0
    for name, tensor in value.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: {name!r:.80} is not a tensor's name")
        claimed += _checked_size(path, name, tensor)
    size = foreign_files.check(path).st_size
    if claimed > max(_SMALL, _MOST_REPETITION * size):
        raise UserError(
            f"{path} is refused: its tensors claim {claimed:,} bytes, the file has {size:,}"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in value.items()}
    return TensorSource(str(path), shapes, value.__getitem__)


def _checked_size(path: Path, name: str, tensor: object) -> int:
    """The bytes that a tensor claims, values of its storage used repeatedly counted each time."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
        raise UserError(f"{path}: {name!r:.80} is not a plain tensor")
    if tensor.device.type != "cpu":
        raise UserError(f"{path}: {name!r:.80} has no data (device {tensor.device})")
    if tensor.numel() == 0:
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((length - 1) * stride for length, stride in steps)
    if (last + 1) * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(
            f"{path} is refused: {name!r:.80} of shape {list(tensor.shape)} exceeds its data"
        )
    return tensor.numel() * tensor.element_size()
