"""llm.c's .bin, written here from its documented layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import make_model, write_llmc

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import llmc


@pytest.mark.parametrize("version", [3, 5])
def test_tensors_land_in_their_places(tmp_path: Path, version: int) -> None:
    model = make_model(activation="gelu_tanh", n_layer=3)
    found = llmc.read(write_llmc(tmp_path / "m.bin", model, version=version))
    assert found.model.config == model.config
    for name, tensor in found.model.state_dict().items():
        expected = model.state_dict()[name]
        assert torch.equal(tensor, expected.bfloat16().float() if version == 5 else expected)
    assert "--tokenizer" in found.notes[0]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [(1, 4, "version 4"), (2, 99, "bytes"), (4, 10**6, "bytes"), (4, -1, "invalid header"),
     (6, 31, "invalid header"), (7, 10, "invalid header"), (0, 20240520, "does not begin")],
)  # fmt: skip
def test_header_that_lies_is_refused(tmp_path: Path, field: int, value: int, said: str) -> None:
    path = write_llmc(tmp_path / "m.bin", make_model(activation="gelu_tanh"))
    data = bytearray(path.read_bytes())
    data[4 * field : 4 * field + 4] = value.to_bytes(4, "little", signed=True)
    path.write_bytes(data)
    with pytest.raises(UserError, match=said):
        llmc.read(path)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_llmc(tmp_path / "m.bin", make_model(activation="gelu_tanh"))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="bytes"):
        llmc.read(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="not a model"):
        llmc.read(path)
