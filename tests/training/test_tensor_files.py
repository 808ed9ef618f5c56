from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from programs import LIMIT, as_ranks
from safetensors.torch import load_file, save_file

from nanogpt_cli.training.checkpoints import tensor_files

TENSORS = {
    "b.matrix": torch.arange(35, dtype=torch.float32).view(7, 5),
    "a.step": torch.tensor(3.0),
    "half": torch.randn(3, 2).bfloat16(),
    "mask": torch.tensor([True, False, True]),
    "ids": torch.tensor([1, 2, 3]),
    "wide": torch.randn(2, 3, dtype=torch.float64),
    "transposed": torch.arange(6.0).view(2, 3).t(),
}


def test_equals_what_the_library_writes_and_reads(tmp_path: Path) -> None:
    tensor_files.write(tmp_path / "ours.safetensors", TENSORS)
    theirs = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(theirs, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours = load_file(tmp_path / "ours.safetensors")
    assert ours.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(ours[name], tensor)
        assert ours[name].dtype == tensor.dtype
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("ours", "theirs")]
    assert sizes[0] == sizes[1]


def test_a_missing_folder_is_the_systems_refusal(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        tensor_files.write(tmp_path / "none" / "x.safetensors", TENSORS)


def test_tensors_computed_on_the_way_make_the_same_file(tmp_path: Path) -> None:
    floats = {"b": torch.randn(7, 5), "a": torch.randn(3), "c": torch.tensor(2.0)}
    lazy = {n: tensor_files.LazyTensor(tuple(t.shape), t.detach) for n, t in floats.items()}
    tensor_files.write_one_by_one(tmp_path / "ours", lazy)
    save_file(floats, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_ahead_keeps_order_holds_two_and_passes_errors_on() -> None:
    alive: list[int] = []

    def make(number: int) -> int:
        alive.append(number)
        if number == 7:
            raise ValueError("seven")
        return number

    results = tensor_files.ahead(partial(make, n) for n in range(100))
    for expected in range(7):
        assert next(results) == expected
        assert len(alive) <= expected + 2
    with pytest.raises(ValueError, match="seven"):
        next(results)


# Tensors split unevenly over three ranks, one of which has none of "short"; written by all of them,
# read back split, and read through torch.distributed.checkpoint.
RANKS = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from nanogpt_cli.training.checkpoints import checkpoint, tensor_files
from nanogpt_cli.machine import distributed, joining
from pathlib import Path

full = {
    "tall": torch.arange(35, dtype=torch.float32).view(7, 5),
    "short": torch.arange(2, dtype=torch.float32),
    "step": torch.tensor(4.0),
}
folder = Path(sys.argv[1])
with joining.joined() as group:
    mesh = init_device_mesh("cpu", (group.world,))
    split = {k: distribute_tensor(t, mesh, [Shard(0)]) if t.dim() else t for k, t in full.items()}
    with distributed.new_folder(folder / "made", group) as made:
        tensor_files.write(made / "x.safetensors", split, group)
    group.meet()
    found = checkpoint.read_tensors(folder / "made" / "x.safetensors")
    for name, tensor in full.items():
        assert torch.equal(found[name], tensor), name
        back = distributed.like(found[name], split[name])
        assert torch.equal(distributed.local(back), distributed.local(split[name])), name
    blank = {k: torch.zeros_like(t) for k, t in split.items()}
    dcp.load(blank, storage_reader=dcp.HuggingFaceStorageReader(str(folder / "made")))
    for name in full:
        assert torch.equal(distributed.local(blank[name]), distributed.local(split[name])), name
    whole = distributed.whole(split, group)
    assert list(whole) == (list(full) if group.leads else [])
    group.meet()
    wrong = folder / ("made" if group.leads else "elsewhere") / "y.safetensors"
    try:
        tensor_files.write(wrong, split, group)
    except OSError as error:
        said = f"refused {error}"
    except Exception as error:
        said = f"told {error}"
    (folder / f"{group.rank}.txt").write_text(said)
    group.meet()
"""


def test_three_ranks_write_one_file_of_whole_tensors(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    done = subprocess.run(
        as_ranks(3, script, tmp_path),
        capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    # What a rank has written says that all its assertions held; how PyTorch leaves is its affair.
    files = [tmp_path / f"{rank}.txt" for rank in range(3)]
    assert all(file.is_file() for file in files), done.stderr
    said = [file.read_text() for file in files]
    assert said[0].startswith("told another process could not write its slice")
    assert [text.split()[0] for text in said[1:]] == ["refused", "refused"]
