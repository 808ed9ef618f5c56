"""Files of torch.save from strangers: nothing executed, no memory beyond the file."""

from __future__ import annotations

import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Payload

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import safe_torch


class HugeBuffer:
    """``weights_only`` allows ``bytearray``: 100 GB from 30 bytes."""

    def __reduce__(self) -> Any:
        return bytearray, (10**11,)


def refused(value: object, path: Path) -> str:
    torch.save(value, path)
    with pytest.raises(UserError) as caught:
        safe_torch.tensors_of(safe_torch.load(path), path)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_payload_is_not_executed(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    assert "system" in refused({"w": Payload(proof)}, tmp_path / "a.pt")
    assert not proof.exists()


def test_large_allocation_by_an_allowed_name_is_refused(tmp_path: Path) -> None:
    assert "bytearray" in refused({"w": HugeBuffer()}, tmp_path / "a.pt")


def test_archive_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.pt", tmp_path / "bomb.pt"
    torch.save({"w": torch.zeros(5_000_000)}, plain)
    with (
        zipfile.ZipFile(plain) as old,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    assert bomb.stat().st_size < 40_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="compressed"):
        safe_torch.load(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8_000  # kB


def test_tensor_without_data_behind_it_is_refused(tmp_path: Path) -> None:
    endless = {"w": torch.zeros(1).expand(10**11)}
    assert "exceeds its data" in refused(endless, tmp_path / "a.pt")
    assert "exceeds" in refused({"w": torch.zeros(6).view(2, 3).T}, tmp_path / "b.pt")


@pytest.mark.parametrize(
    "value",
    [
        {"w": torch.zeros(2).to_sparse()}, {"w": [1, 2]}, {3: torch.zeros(1)}, [torch.zeros(1)], {},
        {"w": torch.zeros(1, device="meta")}, torch.zeros(2),
    ],
    ids=lambda value: type(value).__name__ + str(value)[:12],
)  # fmt: skip
def test_what_is_no_state_dict_is_refused(tmp_path: Path, value: object) -> None:
    refused(value, tmp_path / "a.pt")


def test_member_that_leaves_the_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../data.pkl", b"\x80\x02}.")
    with pytest.raises(UserError, match="leaves"):
        safe_torch.load(path)


def test_flipped_weight_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(1000.0)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.pt"):
        safe_torch.load(path)


def test_file_from_before_archives_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"PyTorch older than 1\.6"):
        safe_torch.load(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.pt"):
        safe_torch.load(tmp_path / "nothing.pt")
