"""llm.c's .bin, written here from its documented layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nanogpt_cli.core.model import GPT
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import llmc
from tests.interop.conftest import make_model

KINDS = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
    "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
    "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip


def write(path: Path, model: GPT, *, version: int = 3, padded: int = 72) -> Path:
    config, tensors = model.config, model.state_dict()
    header = np.zeros(256, "<i4")
    header[:8] = [
        20240326, version, config.block_size, config.vocab_size, config.n_layer, config.n_head,
        config.n_embd, padded,
    ]  # fmt: skip
    padding = torch.full((padded - config.vocab_size, config.n_embd), 9.0)
    parts = [torch.cat([tensors["transformer.wte.weight"], padding])]
    parts.append(tensors["transformer.wpe.weight"])
    for kind in KINDS:
        parts += [tensors[f"transformer.h.{layer}.{kind}"] for layer in range(config.n_layer)]
    parts += [tensors["transformer.ln_f.weight"], tensors["transformer.ln_f.bias"]]
    flat = torch.cat([part.flatten() for part in parts])
    if version == 5:
        body = flat.bfloat16().view(torch.int16).numpy().astype("<i2").tobytes()
    else:
        body = flat.numpy().astype("<f4").tobytes()
    path.write_bytes(header.tobytes() + body)
    return path


@pytest.mark.parametrize("version", [3, 5])
def test_tensors_land_in_their_places(tmp_path: Path, version: int) -> None:
    model = make_model(activation="gelu_tanh", n_layer=3)
    found = llmc.read(write(tmp_path / "m.bin", model, version=version))
    assert found.model.config == model.config
    for name, tensor in found.model.state_dict().items():
        expected = model.state_dict()[name]
        assert torch.equal(tensor, expected.bfloat16().float() if version == 5 else expected)
    assert "--tokenizer" in found.notes[0]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [(1, 4, "version 4"), (2, 99, "bytes"), (4, 10**6, "bytes"), (4, -1, "makes no sense"),
     (6, 31, "makes no sense"), (7, 10, "makes no sense"), (0, 20240520, "does not begin")],
)  # fmt: skip
def test_header_that_lies_is_refused(tmp_path: Path, field: int, value: int, said: str) -> None:
    path = write(tmp_path / "m.bin", make_model(activation="gelu_tanh"))
    data = bytearray(path.read_bytes())
    data[4 * field : 4 * field + 4] = value.to_bytes(4, "little", signed=True)
    path.write_bytes(data)
    with pytest.raises(UserError, match=said):
        llmc.read(path)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.bin", make_model(activation="gelu_tanh"))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="bytes"):
        llmc.read(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="not a model"):
        llmc.read(path)
