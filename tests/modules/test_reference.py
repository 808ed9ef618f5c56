"""The reference pass reproduces every known family, with every weight, gain and bias in play."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoders import small, tokens
from torch import Tensor, nn

from nanogpt_cli import schemes
from nanogpt_cli.init.drawing import build, configure
from nanogpt_cli.model.config import GATED, PLAIN, GPTConfig
from nanogpt_cli.modules.blueprint import blueprint_of, plan_of
from nanogpt_cli.modules.families import FAMILIES
from nanogpt_cli.modules.reference import TOLERANCE, agrees
from nanogpt_cli.modules.theory import theory_of
from nanogpt_cli.modules.witness import Witness

pytest.importorskip("transformers")


def shaken(module: nn.Module, noise: float = 0.02) -> nn.Module:
    """With noise on every parameter, so that no gain is 1 and no bias 0."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return module


def difference(module: nn.Module) -> float:
    plan = plan_of(module)
    assert not isinstance(plan, str), plan
    return agrees(module, plan, tokens(2, 20)[0])


@pytest.mark.numeric
@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_every_family_is_reproduced(kind: str) -> None:
    assert difference(shaken(small(kind))) < 3e-5


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("opt", {"do_layer_norm_before": False}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("stablelm", {"use_parallel_residual": True}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False, "activation_function": "relu"}),
        ("mistral", {"sliding_window": 7}),
        ("qwen2", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}),
        ("qwen3_moe", {"norm_topk_prob": False}),
        ("granite", {"residual_multiplier": 0.2, "logits_scaling": 8.0, "embedding_multiplier": 3}),
        ("llama", {"rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16}}),
    ],
)  # fmt: skip
def test_what_a_configuration_changes_is_reproduced(kind: str, more: dict[str, Any]) -> None:
    assert difference(shaken(small(kind, **more))) < 3e-5


@pytest.mark.numeric
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_our_own_gpt_is_reproduced(activation: str) -> None:
    config = configure(GPTConfig(2, 2, 64, 32, 100, 0.0, True, activation), schemes.get("gpt2"))
    module = shaken(build(config, schemes.get("gpt2"), 0)).eval()
    plan = plan_of(module)
    assert not isinstance(plan, str)
    assert agrees(module, plan, torch.arange(40).view(2, 20)) < 3e-5


def without_sum(module: nn.Module) -> None:
    """The second block forgets the residual stream."""
    block = module.get_submodule("model.layers.1")
    block.register_forward_hook(lambda _m, args, out: out - args[0])


def doubled(module: nn.Module) -> None:
    module.get_submodule("model.layers.0").register_forward_hook(lambda _m, _a, out: 2 * out)


def other_activation(module: nn.Module) -> None:
    for layer in range(2):
        module.get_submodule(f"model.layers.{layer}.mlp").act_fn = nn.GELU()


def other_eps(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if name.endswith("norm"):
            part.register_forward_pre_hook(lambda _m, args: (args[0] + 0.02,))


@pytest.mark.numeric
@pytest.mark.parametrize("number", range(24))
def test_our_own_parts_in_any_combination_are_reproduced(number: int) -> None:
    draw = random.Random(number)
    config = GPTConfig(
        n_layer=2, n_head=4, n_embd=4 * draw.choice([2, 6, 16]), block_size=12, vocab_size=31,
        dropout=0.0, bias=draw.choice([False, True, "qkv"]), activation=draw.choice(PLAIN + GATED),
        tied=draw.random() < 0.5, norm=draw.choice(["layer", "rms"]), norm_eps=1e-3,
        position=draw.choice(["learned", "rope"]), qk_norm=draw.random() < 0.5,
        n_kv_head=draw.choice([0, 1, 2]), hidden=draw.choice([0, 5, 64]), rope_theta=50.0,
    )  # fmt: skip
    scheme = schemes.get("gpt2")
    module = shaken(build(configure(config, scheme), scheme, number), 0.3).eval()
    plan = plan_of(module)
    assert not isinstance(plan, str), plan
    assert agrees(module, plan, torch.arange(24).view(2, 12)) < 1e-4, config


@pytest.mark.parametrize("change", [without_sum, doubled, other_activation, other_eps])
def test_theory_is_not_claimed_for_another_model(change: Callable[[nn.Module], None]) -> None:
    module = small("llama", width=128)
    ids, targets = tokens()
    change(module)
    found = theory_of(module, ids, targets)
    assert found.signals is None
    assert found.difference > TOLERANCE
    assert "architecture that its configuration names" in found.reason


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2", "mixtral"])
def test_a_witness_of_passing_values_sees_the_same(kind: str) -> None:
    """Parts are shown one at a time, in the order in which they run; some heads are tied."""
    module = small(kind)
    plan, ids = plan_of(module), tokens(2, 20)[0]
    assert not isinstance(plan, str)
    witness = Witness(plan, ids)
    assert witness.blueprint() == "not all of its weights were seen"
    for path, part in module.named_modules():
        inside = any(path.startswith(f"{block}.") for block in plan.paths)
        own = any(True for _ in part.parameters(recurse=False))
        if path in plan.paths or (own and not inside):
            witness.observe(path, part)
    assert witness.difference(module(ids).logits) < 1e-5
    assert witness.blueprint() == blueprint_of(module)


def test_logits_of_another_shape_do_not_agree() -> None:
    module = small("llama")
    plan = plan_of(module)
    assert not isinstance(plan, str)

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def named_parameters(self, *args: Any, **named: Any) -> Any:
            return module.named_parameters(*args, **named)

        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = module(ids).logits
            return logits[..., :-1]

    assert agrees(Narrow(), plan, tokens()[0]) == float("inf")
