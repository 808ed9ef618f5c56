"""Writers take one tensor at a time, and what they write is what the libraries write."""

from __future__ import annotations

import errno
import weakref
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import exportable, quiet
from torch import Tensor

from nanogpt_cli.interop import exporting, torchfile
from nanogpt_cli.interop import onnx as onnx_export
from nanogpt_cli.training.checkpoints.tensor_files import LazyTensor


@pytest.mark.parametrize("target", ["hf", "gguf", "nanogpt", "pt2", "onnx"])
def test_no_writer_holds_the_whole_model(tmp_path: Path, target: str) -> None:
    for package in exporting.TARGETS[target].packages:
        pytest.importorskip(package)
    source = exportable(n_layer=3)
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def read(name: str) -> Tensor:
        nonlocal most
        tensor = source.weights.read(name).clone()
        alive.add(tensor)
        most = max(most, sum(t.numel() for t in alive))
        return tensor

    counted = replace(source, weights=replace(source.weights, read=read))
    exporting.export(counted, target, tmp_path, quiet)
    sizes = sorted(source.weights.read(name).numel() for name in source.weights.shapes)
    # The tensor being written, the next one, and for GGUF the three that change together.
    assert 0 < most <= sum(sizes[-3:]) < sum(sizes) / 2


def test_archive_is_what_torch_saves(tmp_path: Path) -> None:
    whole = torch.arange(60, dtype=torch.float32).view(5, 3, 4)
    shared = LazyTensor((3, 3, 4), lambda: whole[:3])  # rows cut off behind
    value = {
        "model": {"a": shared, "b": LazyTensor((3, 4), lambda: whole[2]), "c": shared},
        "scalar": LazyTensor((), lambda: torch.tensor(1.5)), "step": 7, "list": [1, "two", None],
    }  # fmt: skip
    torchfile.save(value, tmp_path / "x.pt")
    found = torch.load(tmp_path / "x.pt", weights_only=True, mmap=True)
    model = found["model"]
    assert torch.equal(model["a"], whole[:3])
    assert torch.equal(model["b"], whole[2])
    assert model["c"].data_ptr() == model["a"].data_ptr()
    assert model["a"].untyped_storage().nbytes() == 4 * 36
    assert (found["scalar"], found["step"], found["list"]) == (1.5, 7, [1, "two", None])
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.testzip() is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
@pytest.mark.parametrize("numbers", [3, 1 << 20])
def test_a_full_disk_is_an_os_error(numbers: int) -> None:
    value = {"a": LazyTensor((numbers,), lambda: torch.zeros(numbers))}
    with pytest.raises(OSError) as refused:
        torchfile.save(value, Path("/dev/full"))
    assert refused.value.errno == errno.ENOSPC


def test_onnx_file_is_what_the_library_writes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    rows = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 300])
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    small = onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [1], [1.0])
    graph = onnx.helper.make_graph([node], "g", [rows], [rows], [small])
    model = onnx.helper.make_model(graph, producer_name="p")
    tensors = {"w": torch.randn(2, 300), "v": torch.randn(3)}
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    expected.graph.initializer.extend(
        onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in tensors.items()
    )
    entries = {k: LazyTensor(tuple(t.shape), t.detach) for k, t in tensors.items()}
    onnx_export.write_file(tmp_path / "m.onnx", model, entries)
    assert onnx.load(tmp_path / "m.onnx") == expected
    assert (tmp_path / "m.onnx").stat().st_size == len(expected.SerializeToString())
