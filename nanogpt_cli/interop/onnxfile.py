"""Writing ONNX files one tensor at a time.

The library serialises a whole model in memory and copies it several times. But a protocol buffer
message is a sequence of fields, each a tag, a length and a value, and repeated fields may come
last. So the bytes of the graph are followed by its initializers, each with its values as the last
field (https://protobuf.dev/programming-guides/encoding; field numbers from ``onnx.proto``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from nanogpt_cli.interop.tensorfile import Entry, ahead, little_endian

# ModelProto.graph, GraphProto.initializer, TensorProto.raw_data: number << 3 | 2 (with a length).
_GRAPH: Final = 7 << 3 | 2
_INITIALIZER: Final = 5 << 3 | 2
_RAW_DATA: Final = 9 << 3 | 2


def write(path: Path, model: Any, weights: Mapping[str, Entry]) -> None:
    """Write ``model`` with ``weights`` as further float32 initializers.

    Args:
        path: the file.
        model: an ``onnx.ModelProto`` whose graph uses the names of ``weights``; it is modified.
        weights: the tensors that it lacks.
    """
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    heads = {name: _head(name, entry) for name, entry in weights.items()}
    sizes = {name: len(head) + _nbytes(weights[name]) for name, head in heads.items()}
    total = len(graph) + sum(1 + len(_varint(size)) + size for size in sizes.values())
    with path.open("wb") as file:
        file.write(model.SerializeToString())
        _begin(file, _GRAPH, total)
        file.write(graph)
        tensors = ahead(entry.get for entry in weights.values())
        for (name, entry), tensor in zip(weights.items(), tensors, strict=True):
            assert tuple(tensor.shape) == entry.shape, name
            _begin(file, _INITIALIZER, sizes[name])
            file.write(heads[name])
            file.write(little_endian(tensor).data)


def _head(name: str, entry: Entry) -> bytes:
    """The serialised tensor up to its values."""
    import onnx

    proto = onnx.TensorProto(name=name, dims=entry.shape, data_type=onnx.TensorProto.FLOAT)
    head: bytes = proto.SerializeToString()
    return head + bytes([_RAW_DATA]) + _varint(_nbytes(entry))


def _nbytes(entry: Entry) -> int:
    return 4 * math.prod(entry.shape)


def _begin(file: BinaryIO, tag: int, size: int) -> None:
    file.write(bytes([tag]) + _varint(size))


def _varint(number: int) -> bytes:
    """Seven bits per byte, the lowest first; every byte but the last has its high bit set."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
