"""Writing ONNX with a key/value cache, under the names that transformers.js and optimum use.

Inputs ``input_ids``, ``attention_mask``, ``position_ids``, ``past_key_values.N.key|value`` (B, G,
P, D: G heads of keys and values, P = 0 at first); outputs ``logits``, ``present.N.key|value``.
Prompts of different lengths are padded on the left; padding is masked, and positions come from the
mask.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import huggingface
from nanogpt_cli.interop import source as sources
from nanogpt_cli.interop.onnx_model import MATRICES, Cached
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.model.parameters import token_embedding
from nanogpt_cli.training.checkpoints.tensor_files import LazyTensor, computed, little_endian

OPSET: Final = 18
# A protobuf file is limited to 2 GiB; larger models would need their weights in another file.
_LARGEST: Final = 2_000_000_000
_PREFIX: Final = "model."
# ModelProto.graph, GraphProto.initializer, TensorProto.raw_data: number << 3 | 2 (with a length).
_GRAPH: Final = 7 << 3 | 2
_INITIALIZER: Final = 5 << 3 | 2
_RAW_DATA: Final = 9 << 3 | 2


def check(source: Exportable) -> None:
    """Raise ``UserError`` if the model does not fit into one file or a ``config.json``."""
    huggingface.check(source)
    if source.weights.nbytes > _LARGEST:
        raise UserError(
            f"the model has {source.weights.nbytes / 1e9:.1f} GB; an ONNX file holds at most 2",
            "--to hf has no such limit",
        )


def write(source: Exportable, folder: Path, report: Callable[[str], None]) -> None:
    """Write ``onnx/model.onnx`` beside the configuration and tokenizer transformers.js needs.

    Raises:
        UserError: see ``check``.
    """
    check(source)
    report("tracing the model for ONNX (up to a minute)")
    with _quiet():
        program = _program(source.config)
        weights = _without_weights(program, source)
    (folder / "onnx").mkdir()
    report(f"writing {source.weights.nbytes / 1e6:,.1f} MB of weights")
    write_file(folder / "onnx" / "model.onnx", program.model_proto, weights)
    huggingface.write_json_files(source, folder)


def _program(config: GPTConfig) -> Any:
    with sources.without_values(), torch.no_grad():
        # Two tensors: one object for both arguments would be traced as one input.
        ids, positions = (torch.zeros(2, 3, dtype=torch.int64) for _ in range(2))
        past_shape = (2, config.kv_heads, 5, config.head_size)
        past = [(torch.zeros(past_shape), torch.zeros(past_shape)) for _ in range(config.n_layer)]
        mask = torch.ones(2, 8, dtype=torch.int64)
        return torch.onnx.export(
            Cached(GPT(config).eval()),
            (ids, mask, positions, past),
            dynamo=True,
            optimize=False,  # it would fold constants, but the weights have no values yet
            opset_version=OPSET,
            input_names=[
                "input_ids", "attention_mask", "position_ids",
                *_cache_names("past_key_values", config.n_layer),
            ],
            output_names=["logits", *_cache_names("present", config.n_layer)],
            dynamic_shapes=_dynamic(config.n_layer),
            verbose=False,
        )  # fmt: skip


def _without_weights(program: Any, source: Exportable) -> dict[str, LazyTensor]:
    """Simplify the graph and remove the weights from it; returns them by their names there."""
    initializers = program.model.graph.initializers
    names = [name for name in initializers if name.startswith(_PREFIX)]
    for name in names:
        initializers[name].const_value = None
    program.optimize()
    initializers = program.model.graph.initializers
    entries = {}
    for name in names:
        initializers.pop(name)
        native = name.removeprefix(_PREFIX)
        if native == "lm_head.weight" and source.config.tied:
            native = token_embedding(source.config)
        entries[name] = huggingface.entry(source.weights, native, transposed=MATRICES)
    assert len(entries) == len(source.weights.shapes), "the graph has other weights"
    return entries


def _cache_names(prefix: str, n_layer: int) -> list[str]:
    return [f"{prefix}.{layer}.{kind}" for layer in range(n_layer) for kind in ("key", "value")]


def _dynamic(n_layer: int) -> tuple[Any, ...]:
    # transformers.js creates the empty cache by these names; "batch_size" must be among them.
    names = ("batch_size", "sequence_length", "past_sequence_length")
    batch, time, past = (torch.export.Dim(name) for name in names)
    total = torch.export.Dim.AUTO  # past + sequence
    ids, cache = {0: batch, 1: time}, {0: batch, 2: past}
    return ids, {0: batch, 1: total}, ids, [(cache, cache) for _ in range(n_layer)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's output and warnings about packages that are not needed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write_file(path: Path, model: Any, weights: Mapping[str, LazyTensor]) -> None:
    """Write ``model`` with ``weights`` as further float32 initializers, one tensor at a time.

    The library serialises a whole model in memory and copies it several times. But a protocol
    buffer message is a sequence of fields, each a tag, a length and a value, and repeated fields
    may come last. So the bytes of the graph are followed by its initializers, each with its values
    as the last field (https://protobuf.dev/programming-guides/encoding; field numbers from
    ``onnx.proto``).

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
        for name, tensor in zip(weights, computed(weights.values()), strict=True):
            _begin(file, _INITIALIZER, sizes[name])
            file.write(heads[name])
            file.write(little_endian(tensor).data)


def _head(name: str, entry: LazyTensor) -> bytes:
    """The serialised tensor up to its values."""
    import onnx

    proto = onnx.TensorProto(name=name, dims=entry.shape, data_type=onnx.TensorProto.FLOAT)
    head: bytes = proto.SerializeToString()
    return head + bytes([_RAW_DATA]) + _varint(_nbytes(entry))


def _nbytes(entry: LazyTensor) -> int:
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
