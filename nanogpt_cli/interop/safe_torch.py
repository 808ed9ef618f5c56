"""``torch.load`` for untrusted files.

``weights_only=True`` prevents code execution, but not exhaustion of memory: a compressed archive
may unpack to thousands of times its size, a tensor of stride 0 may claim any shape, and
``bytearray`` may be called with any number. So the archive's table and the pickle's instructions
are checked before torch reads the file, and each tensor is checked against its storage afterwards.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from nanogpt_cli import foreign_files, safe_pickle
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop.foreign import TensorSource

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


def load(path: Path) -> Any:
    """The object in a file that ``torch.save`` wrote; its storages are memory-mapped.

    Raises:
        UserError: it is missing, damaged, compressed, or holds anything but plain tensors and
            values; nothing in it is executed.
    """
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path} is not a readable PyTorch file: {reason}") from None


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
            f"{path} is not a readable PyTorch file: {str(error)[:120]}",
            "files of a PyTorch older than 1.6 must be saved again with a newer one",
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


def tensors_of(value: Any, path: Path) -> TensorSource:
    """A state dict as a source of tensors, each checked against its storage.

    Raises:
        UserError: ``value`` is not a dict of plain tensors.
    """
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{path} holds no weights: a dict of tensors is expected")
    for name, tensor in value.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: {name!r:.80} is not a tensor's name")
        _check_tensor(path, name, tensor)
    shapes = {name: tuple(tensor.shape) for name, tensor in value.items()}
    return TensorSource(str(path), shapes, value.__getitem__)


def _check_tensor(path: Path, name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
        raise UserError(f"{path}: {name!r:.80} is not a plain tensor")
    if tensor.device.type != "cpu":
        raise UserError(f"{path}: {name!r:.80} has no data (device {tensor.device})")
    end = (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
    if not tensor.is_contiguous() or end > tensor.untyped_storage().nbytes():
        raise UserError(
            f"{path} is refused: {name!r:.80} of shape {list(tensor.shape)} exceeds its data",
            "in a saved model each tensor's data is complete and contiguous",
        )
