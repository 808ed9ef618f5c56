"""What is decided from a recipe and the machine."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from nanogpt_cli import recipe
from nanogpt_cli.machine import device, formats


@pytest.mark.parametrize(("native", "format"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_the_processor_multiplies_it(
    native: bool, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "cpu_multiplies_bf16", lambda: native)
    chosen = device.choose(recipe.Train(device="cpu"))
    assert chosen.precision == format
    assert chosen.muon_dtype == (torch.bfloat16 if native else torch.float32)


def test_what_the_recipe_says_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "cpu_multiplies_bf16", lambda: True)
    chosen = device.choose(recipe.Train(device="cpu", precision="fp32"))
    assert chosen.precision == "fp32"
    assert chosen.muon_dtype == torch.float32
    monkeypatch.setattr(formats, "cpu_multiplies_bf16", lambda: False)
    chosen = device.choose(recipe.Train(device="cpu", precision="bf16"))
    assert chosen.precision == "bf16"
    assert chosen.muon_dtype == torch.float32  # emulated products would be slower


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an H100, a T4 and a P100; the H100 is the current device."""
    capabilities = [(9, 0), (7, 5), (6, 0)]

    def capability(device: torch.device) -> tuple[int, int]:
        return capabilities[device.index or 0]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("where", "parallel", "format", "muon"),
    [
        ("auto", "ddp", "bf16", torch.bfloat16),
        ("cuda:0", "fsdp", "bf16", torch.bfloat16),
        ("cuda:1", "ddp", "fp16", torch.float32),
        ("cuda:1", "fsdp", "fp32", torch.float32),
        ("cuda:2", "ddp", "fp32", torch.float32),
    ],
)
def test_auto_never_takes_emulated_bf16_on_a_gpu(
    where: str, parallel: Literal["ddp", "fsdp"], format: str, muon: torch.dtype
) -> None:
    chosen = device.choose(recipe.Train(device=where, parallel=parallel))
    assert chosen.precision == format
    assert chosen.muon_dtype == muon
    assert [note for note in chosen.notes if "no bf16" in note] == (
        [] if format == "bf16" else list(chosen.notes)
    )
    assert all(note.startswith(f"{format}: ") for note in chosen.notes)
    assert any("fsdp" in note for note in chosen.notes) == (
        where == "cuda:1" and parallel == "fsdp"
    )


@pytest.mark.usefixtures("gpus")
def test_muon_is_bf16_on_a_gpu_that_has_it_whatever_the_precision() -> None:
    chosen = device.choose(recipe.Train(device="cuda", precision="fp32"))
    assert (chosen.precision, chosen.muon_dtype) == ("fp32", torch.bfloat16)
    chosen = device.choose(recipe.Train(device="cuda:1", precision="bf16"))
    assert (chosen.precision, chosen.muon_dtype) == ("bf16", torch.float32)
    assert "emulated" in chosen.notes[0]  # asked for, so it is done
