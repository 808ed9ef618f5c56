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
    assert "claim 400,000,000,000 bytes" in refused(endless, tmp_path / "a.pt")
    shared = torch.zeros(1 << 20)
    many = {f"w{i}": shared.view(1 << 10, 1 << 10) for i in range(20)}
    assert "claim" in refused(many, tmp_path / "b.pt")


def test_views_in_any_order_are_read(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    value = {"w": whole.T, "rows": whole[1:3], "gaps": whole[:, ::2], "one": whole[0].expand(3, 6)}
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(value, tmp_path / "a.pt", **options)
        found = safe_torch.open_files([tmp_path / "a.pt"])
        assert all(torch.equal(found.get(name), tensor) for name, tensor in value.items())


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


def test_payload_in_a_file_from_before_archives_is_not_executed(tmp_path: Path) -> None:
    path, proof = tmp_path / "a.pt", tmp_path / "executed"
    torch.save({"w": Payload(proof)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="imports 'posix system'"):
        safe_torch.load(path)
    assert not proof.exists()


@pytest.mark.parametrize("kept", [14, 30, 200, 400, -4])
def test_cut_file_from_before_archives_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(30)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"a\.pt"):
        safe_torch.load(path)


def test_storage_of_a_terabyte_in_a_file_from_before_archives_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(0x1234)}, path, _use_new_zipfile_serialization=False)
    # The number of values: BININT2 in the persistent id becomes BININT of 2^31 - 1, then LONG1.
    huge = b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
    data = path.read_bytes().replace(b"M\x34\x12", huge, 1)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.pt"):
        safe_torch.load(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.pt"):
        safe_torch.load(tmp_path / "nothing.pt")
