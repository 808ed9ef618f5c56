"""Writing ONNX files one tensor at a time.

The library serialises a whole model in memory, several times over. But a message of protocol
buffers is a sequence of fields, each a tag, a length and the value, and repeated fields may come
last: so the graph's own bytes are followed by its initializers, each with its numbers as the last
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
        model: an ``onnx.ModelProto`` whose graph uses the names of ``weights``; changed.
        weights: the tensors that are missing in it.
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
    """A tensor up to its numbers."""
    import onnx

    proto = onnx.TensorProto(name=name, dims=entry.shape, data_type=onnx.TensorProto.FLOAT)
    head: bytes = proto.SerializeToString()
    return head + bytes([_RAW_DATA]) + _varint(_nbytes(entry))


def _nbytes(entry: Entry) -> int:
    return 4 * math.prod(entry.shape)


def _begin(file: BinaryIO, tag: int, size: int) -> None:
    file.write(bytes([tag]) + _varint(size))


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the high bit set."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
