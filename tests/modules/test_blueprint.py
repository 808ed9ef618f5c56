"""What is read from modules: structure, moments, and reasons for not claiming any."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from decoders import VOCAB, small
from torch import nn

from nanogpt_cli import schemes
from nanogpt_cli.init.blueprint import Blueprint, Variances
from nanogpt_cli.init.drawing import build, configure
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.modules.blueprint import blueprint_of, plan_of

pytest.importorskip("transformers")


def read(module: nn.Module) -> Blueprint:
    found = blueprint_of(module)
    assert not isinstance(found, str), found
    return found


def test_llama_with_grouped_keys() -> None:
    found = read(small("llama", width=128, layers=3))
    assert (found.width, found.n_head, found.n_kv_head, found.head_size) == (128, 4, 2, 32)
    assert (found.hidden, found.vocab, len(found.layers)) == (512, VOCAB, 3)
    assert found.gated
    assert not found.tied
    assert found.eps == 1e-6
    assert found.layers[0].rope[0] == 1.0
    assert found.layers[0].rope[-1] == pytest.approx(1e4 ** (-30 / 32))


def test_multipliers_and_placements() -> None:
    gemma = read(small("gemma", width=64))
    assert gemma.embedding == 8.0
    assert gemma.final_gain == 1.0  # the weight is 0
    assert gemma.tied
    assert read(small("gemma2")).placement == "peri"
    assert read(small("gemma2")).score_cap == 50.0
    olmo = read(small("olmo2"))
    assert olmo.placement == "branch"
    assert olmo.qk_norm
    assert read(small("gpt_neox")).parallel
    assert len(read(small("gpt_neox")).layers[0].rope) == 4  # a quarter of 32 channels
    assert read(small("opt", do_layer_norm_before=False)).placement == "post"
    assert not read(small("opt", do_layer_norm_before=False)).final_norm
    assert read(small("smollm3", layers=4)).layers[3].rope == ()
    mixtral = read(small("mixtral"))
    assert (mixtral.experts, mixtral.active, mixtral.shares_sum) == (4, 2, True)


@pytest.mark.numeric
def test_fused_matrices_fall_into_their_heads() -> None:
    """NeoX keeps q, k and v of a head side by side: they are told apart in the moments."""
    module = small("gpt_neox")
    weight = module.get_parameter("gpt_neox.layers.0.attention.query_key_value.weight")
    with torch.no_grad():
        parts = weight.view(2, 3, 32, 64)  # (H, 3, D, C)
        for n in range(3):
            parts[:, n] = n + 1
    found = read(module).layers[0].moments
    assert (found.q, found.k, found.v) == pytest.approx((1, 4, 9))


@pytest.mark.numeric
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_moments_of_our_gpt_are_those_of_its_laws(activation: str) -> None:
    scheme = schemes.get("pytorch")
    config = configure(GPTConfig(2, 4, 256, 32, 2000, 0.0, True, activation), scheme)
    measured, declared = read(build(config, scheme, 0)), Blueprint.of(config, scheme)
    assert (measured.activation, measured.gated) == (declared.activation, declared.gated)
    for one, other in zip(measured.layers, declared.layers, strict=True):
        for item in fields(Variances):
            if item.name not in ("gate", "bias_gate") or declared.gated:
                value = getattr(one.moments, item.name)
                assert value == pytest.approx(getattr(other.moments, item.name), rel=0.25)
        assert one.moments.fc == pytest.approx(other.moments.fc, rel=0.01)
    assert measured.wte == pytest.approx(declared.wte, rel=0.01)
    assert measured.head == measured.wte


@pytest.mark.numeric
def test_the_row_of_a_padding_token_is_left_out() -> None:
    module = small("llama", pad_token_id=7)
    rows = module.get_parameter("model.embed_tokens.weight").detach().double()
    found = read(module)
    assert found.padding == 7
    others = torch.cat([rows[:7], rows[8:]])
    assert found.wte == pytest.approx(float(others.square().mean()), rel=1e-6)
    with torch.no_grad():
        module.get_parameter("model.embed_tokens.weight")[7] = 1.0
    assert read(module).padding == -1


def test_a_plan_needs_no_values_and_a_blueprint_does() -> None:
    with torch.device("meta"):
        module = small("qwen2")
    plan = plan_of(module)
    assert not isinstance(plan, str)
    assert plan.blueprint.n_head == 2
    assert blueprint_of(module) == "its weights have no values yet"


@pytest.mark.parametrize(
    ("module", "said"),
    [(nn.Linear(2, 2), "Linear"), (nn.Sequential(nn.Embedding(4, 4)), "Sequential")],
)
def test_unknown_modules_are_named(module: nn.Module, said: str) -> None:
    found = plan_of(module)
    assert isinstance(found, str)
    assert said in found


def test_unknown_parts_are_named() -> None:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    assert plan_of(LlamaModel(config)) == "there is no part model"
    bloom = plan_of(small("bloom", n_head=2))
    assert isinstance(bloom, str)
    assert "bloom" in bloom
    odd = plan_of(small("llama", hidden_act="mish"))
    assert isinstance(odd, str)
    assert "mish" in odd
    scaled = plan_of(small("llama", rope_parameters={
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
        "original_max_position_embeddings": 64}))  # fmt: skip
    assert scaled == "its rotary positions scale the scores"


def test_a_norm_with_a_bias_is_not_claimed() -> None:
    module = small("gpt2")
    with torch.no_grad():
        module.get_parameter("transformer.h.1.ln_2.bias")[3] = 0.5
    found = blueprint_of(module)
    assert isinstance(found, str)
    assert found.startswith("transformer.h.1.ln_2.bias is not zero")
    assert math.isfinite(read(small("gpt2")).wte)


def test_a_configuration_that_lies_is_no_traceback() -> None:
    module = small("qwen2")
    module.config.num_hidden_layers = 7
    assert not isinstance(plan_of(module), str)  # the blocks count, not what is said of them
    module.config.layer_types = ["full_attention"]
    found = plan_of(module)
    assert isinstance(found, str)
    assert "is not that of its model type" in found
    other = small("qwen2")
    other.config.num_attention_heads = 8
    found = plan_of(other)
    assert isinstance(found, str)
    assert "32 rows, not 1 × 8" in found
