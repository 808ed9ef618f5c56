"""Names of parameters: the block each belongs to, and which are its matrices."""

from __future__ import annotations

import pytest

from nanogpt_cli.model import parameters
from nanogpt_cli.model.gpt import GPT, GPTConfig


@pytest.fixture(scope="module")
def model() -> GPT:
    return GPT(GPTConfig(12, 1, 4, 4, 5, dropout=0.0, bias=True, activation="gelu", tied=False))


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
def test_every_name_leads_to_its_block(model: GPT, prefix: str) -> None:
    seen = set()
    for layer, block in enumerate(model.transformer.h):
        for rest, parameter in block.named_parameters():
            name = f"{prefix}transformer.h.{layer}.{rest}"
            seen.add(name)
            assert parameters.layer_of(name) == layer
            assert parameters.layer_of(f"h.{layer}.{rest}") == layer
            assert parameters.of_first_block(name) == f"{prefix}transformer.h.0.{rest}"
            assert parameters.is_block_matrix(name, parameter.shape) == (parameter.dim() == 2)
    for name, parameter in model.named_parameters():
        if prefix + name not in seen:
            assert parameters.layer_of(prefix + name) == -1
            assert parameters.of_first_block(name) == name
            assert not parameters.is_block_matrix(name, parameter.shape)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_shapes_are_those_of_the_module(bias: bool, tied: bool, activation: str) -> None:
    config = GPTConfig(2, 2, 8, 4, 5, dropout=0.0, bias=bias, activation=activation, tied=tied)
    expected = {name: tuple(p.shape) for name, p in GPT(config).named_parameters()}
    assert parameters.shapes(config) == expected
