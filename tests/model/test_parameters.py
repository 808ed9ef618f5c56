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


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer.wte.weight", "wte"),
        ("transformer.h.11.attn.c_attn.weight", "qkv"),
        ("transformer.h.0.attn.c_proj.weight", "attn_proj"),
        ("transformer.h.0.mlp.c_proj.weight", "mlp_proj"),
        ("transformer.h.0.mlp.c_fc.bias", "bias"),
        ("transformer.ln_f.weight", "ln"),
        ("transformer.h.3.ln_2.bias", "ln_bias"),
        ("lm_head.weight", "lm_head"),
        ("model.layers.10.self_attn.k_proj.bias", "bias"),
        ("model.layers.0.self_attn.o_proj.weight", "attn_proj"),
        ("model.layers.0.mlp.up_proj.weight", "fc"),
        ("model.layers.0.mlp.gate_proj.weight", "gate"),
        ("model.layers.0.self_attn.q_norm.weight", "ln"),
        ("model.norm.bias", "ln_bias"),
    ],
)
def test_the_class_comes_from_the_name(name: str, kind: str) -> None:
    assert parameters.tensor_class(name) == kind


@pytest.mark.parametrize(
    "name", ["transformer.h.0.attn.cproj.weight", "model.layers.0.self_attn.cproj.weight"]
)
def test_cproj_is_not_c_proj(name: str) -> None:
    with pytest.raises(ValueError, match="cproj"):
        parameters.tensor_class(name)
