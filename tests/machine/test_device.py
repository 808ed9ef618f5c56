"""What is decided from a recipe and the machine."""

from __future__ import annotations

import pytest
import torch

from nanogpt_cli import recipe
from nanogpt_cli.machine import device


@pytest.mark.parametrize(("native", "format"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_the_processor_multiplies_it(
    native: bool, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cpu_multiplies_bf16", lambda: native)
    chosen = device.choose(recipe.Train(device="cpu"))
    assert chosen.precision == format
    assert chosen.muon_dtype == (torch.bfloat16 if native else torch.float32)


def test_what_the_recipe_says_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_multiplies_bf16", lambda: True)
    chosen = device.choose(recipe.Train(device="cpu", precision="fp32"))
    assert chosen.precision == "fp32"
    assert chosen.muon_dtype == torch.float32
    monkeypatch.setattr(device, "cpu_multiplies_bf16", lambda: False)
    chosen = device.choose(recipe.Train(device="cpu", precision="bf16"))
    assert chosen.precision == "bf16"
    assert chosen.muon_dtype == torch.float32  # emulated products would be slower
