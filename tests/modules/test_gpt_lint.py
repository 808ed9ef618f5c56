"""Faults in the weights of a GPT of this package, judged without knowing its scheme."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from nanogpt_cli import schemes
from nanogpt_cli.init import lint, lint_signals
from nanogpt_cli.init.drawing import build, configure
from nanogpt_cli.init.inspect import measure
from nanogpt_cli.init.lint import Verdict
from nanogpt_cli.init.sources import Stored
from nanogpt_cli.init.theory import random_tokens
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.modules.inspection import judge_weights

CONFIG = GPTConfig(6, 2, 128, 32, 1000, 0.0, False, "gelu")


def weights(model: GPT) -> list[Verdict]:
    """What the lint says of the weights, which are a start."""
    verdicts, trained = judge_weights(model)
    assert not trained
    return verdicts


def signals(model: GPT) -> list[Verdict]:
    source = Stored(model.config, dict(model.named_parameters()).__getitem__)
    idx, targets = random_tokens(model.config, 1, 16, seed=0)
    found = measure(source, idx, targets, backward=False)
    return lint_signals.on_signals(found.signals, model.config)


def topics(verdicts: list[Verdict]) -> set[str]:
    return {v.topic for v in verdicts if v.severity in (lint.WARN, lint.FAIL)}


def nearest(verdicts: list[Verdict]) -> str:
    """The scheme in the verdict that names it."""
    (text,) = [v.text for v in verdicts if v.topic == "nearest"]
    return text.removeprefix("nearest scheme: ").partition(" (")[0]


def off(verdicts: list[Verdict]) -> list[str]:
    """The roles that are called different from the nearest scheme."""
    return [v.text.partition(":")[0] for v in verdicts if v.topic == "law"]


def each(model: GPT, leaf: str) -> list[torch.nn.Parameter]:
    return [p for n, p in model.named_parameters() if n.endswith(leaf)]


def plain_projections(m: GPT) -> None:
    for p in (*each(m, "attn.c_proj.weight"), *each(m, "mlp.c_proj.weight")):
        p.normal_(0, 0.02)


def wrong_matrix(m: GPT) -> None:
    plain_projections(m)
    for p in each(m, "c_fc.weight"):
        p.normal_(0, 0.02 / math.sqrt(12))


def embeddings_of_one(m: GPT) -> None:
    m.transformer.wte.weight.normal_()


def fused_xavier(m: GPT) -> None:
    for leaf in ("c_attn.weight", "attn.c_proj.weight", "c_fc.weight", "mlp.c_proj.weight"):
        for p in each(m, leaf):
            torch.nn.init.xavier_normal_(p)


def one_zero(m: GPT) -> None:
    m.transformer.h[3].mlp.c_fc.weight.zero_()


def garbage(m: GPT) -> None:
    m.transformer.h[2].attn.c_attn.weight[5, 7] = 3e35


def not_a_number(m: GPT) -> None:
    m.transformer.h[2].attn.c_proj.weight[0, 0] = math.nan


def denormal(m: GPT) -> None:
    for p in each(m, "c_fc.weight"):
        p.view(torch.int32).random_(0, 1 << 20)


def three(m: GPT) -> None:
    m.transformer.h[2].ln_1.weight.fill_(3.0)


def half_scaled(m: GPT) -> None:
    for p in each(m, "mlp.c_proj.weight"):
        p.normal_(0, 0.02)


def one_zero_projection(m: GPT) -> None:
    m.transformer.h[3].mlp.c_proj.weight.zero_()


def no_positions(m: GPT) -> None:
    m.transformer.wpe.weight.zero_()


def one_block(m: GPT) -> None:
    m.transformer.h[3].mlp.c_proj.weight.mul_(2)


def drowned(m: GPT) -> None:
    m.transformer.wpe.weight.normal_()


# The fault, the topic and severity of its verdict, and what its text must name.
FAULTS: dict[str, tuple[Callable[[GPT], None], str, str, str]] = {
    # Most models of transformers start so: it is said, but no fault by itself.
    "plain projections": (plain_projections, "plain-projections", lint.NOTE, "have the plain std"),
    "one of two projections scaled": (
        half_scaled, "half-scaled", lint.WARN, "mlp_proj has the plain std"
    ),
    "scaling on the wrong matrix": (wrong_matrix, "wrong-matrix", lint.WARN, "fc: std"),
    "embeddings N(0, 1) with tying": (
        embeddings_of_one, "torch-default", lint.FAIL, "tied to the head"
    ),
    "fused Xavier": (fused_xavier, "fused-xavier", lint.WARN, "q, k, v"),
    "a matrix left at zero": (one_zero, "zero", lint.FAIL, "h.3.mlp.c_fc"),
    "a projection left at zero": (one_zero_projection, "zero", lint.FAIL, "h.3.mlp.c_proj"),
    "positions left at zero": (no_positions, "zero", lint.FAIL, "wpe"),
    "uninitialised memory": (garbage, "uninitialised", lint.FAIL, "h.2.attn.c_attn"),
    "memory that was something else": (denormal, "subnormal", lint.FAIL, "h.0.mlp.c_fc"),
    "a LayerNorm gain of three": (three, "gain", lint.WARN, "h.2.ln_1"),
    "NaN": (not_a_number, "not-finite", lint.FAIL, "h.2.attn.c_proj"),
    "one block twice as large": (one_block, "odd-block", lint.WARN, "h.3.mlp.c_proj"),
    "positions N(0, 1)": (drowned, "torch-default", lint.WARN, "wpe: std"),
}  # fmt: skip


@pytest.mark.numeric
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_named_without_knowing_the_scheme(fault: str) -> None:
    plant, topic, severity, named = FAULTS[fault]
    model = build(CONFIG, schemes.get("gpt2"), 0)
    assert not topics(weights(model))
    torch.manual_seed(0)
    with torch.no_grad():
        plant(model)
    (found,) = [v for v in weights(model) if v.topic == topic]
    assert found.severity == severity
    assert named in found.text


def test_signals_fail_where_a_table_is_far_too_large() -> None:
    for plant, topic in ((embeddings_of_one, "own-token"), (drowned, "token-share")):
        model = build(CONFIG, schemes.get("gpt2"), 0)
        torch.manual_seed(0)
        with torch.no_grad():
            plant(model)
        assert any(v.topic == topic and v.severity == lint.FAIL for v in signals(model))


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("std", "why"), [(0.02**2, "a variance in place of a std"), (0.02**0.5, "taken for a variance")]
)
def test_a_std_and_a_variance_mistaken_for_each_other_are_named(std: float, why: str) -> None:
    model = build(CONFIG, schemes.get("gpt2"), 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in each(model, "c_fc.weight"):
            p.normal_(0, std)
    (found,) = [v for v in weights(model) if v.severity == lint.WARN]
    assert found.text.startswith("fc: std")
    assert why in found.text


def test_several_faults_do_not_hide_each_other() -> None:
    model = build(CONFIG, schemes.get("gpt2"), 3)
    torch.manual_seed(3)
    with torch.no_grad():
        half_scaled(model)
        model.transformer.h[2].attn.c_proj.weight.zero_()
    assert topics(weights(model)) == {"half-scaled", "zero"}  # and no second sentence on either


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["wte", "wpe", "fc", "q", "v", "attn_proj", "mlp_proj"])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_ten_percent_in_one_role_is_found_and_named(kind: str, factor: float) -> None:
    rule = schemes.get("gpt2").rules[kind]
    changed = schemes.parse_custom({kind: f"{rule.kind}({factor} * ({rule.formula}))"})
    found = weights(build(CONFIG, changed, 0))
    assert nearest(found) == "gpt2"
    assert off(found) == [kind]


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["lm_head", "k", "wte"])
def test_ten_percent_in_one_role_of_a_truncated_scheme_with_a_head_of_its_own(kind: str) -> None:
    rule = schemes.get("full-megatron").rules[kind]
    law = f"truncated(1.1 * ({rule.formula}), 3)"
    changed = schemes.parse_custom({"base": "full-megatron", kind: law})
    found = weights(build(replace(CONFIG, tied=False), changed, 0))
    assert nearest(found) == "full-megatron"
    assert off(found) == [kind]


def test_zero_tables_and_projections_are_no_fault_where_the_scheme_has_them() -> None:
    for name in ("modded", "nanochat", "zero-proj"):
        assert "zero" not in topics(weights(build(CONFIG, schemes.get(name), 0)))


def test_depth_scaling_outside_the_matrices_counts() -> None:
    scheme = schemes.get("completep")
    config = configure(replace(CONFIG, n_embd=256, n_head=4), scheme)
    assert not topics(weights(build(config, scheme, 0)))


@pytest.mark.numeric
def test_a_smaller_table_is_not_taken_for_a_truncated_one() -> None:
    """At 64 × 64 entries nine tenths of 0.02 is near full-megatron's 0.0197; its cut is not."""
    config = replace(CONFIG, n_layer=4, n_head=1, n_embd=64, block_size=64)
    model = build(config, schemes.parse_custom({"wpe": "normal(0.018)", "fc": "normal(0.02)"}), 8)
    found = weights(model)
    assert nearest(found) == "gpt2"
    assert off(found) == ["wpe"]


@pytest.mark.numeric
@pytest.mark.parametrize(
    "name",
    ["gpt2", "normal", "scaled-1L", "proj-x0.02", "zero-proj", "pytorch", "pytorch-embtie",
     "xavier", "xavier-fused", "kaiming", "lecun", "small-wang", "small-wang-tiny", "mitchell",
     "layer-index", "scaled-all", "gpt2-tf", "gpt2-w", "modded", "nanochat"],
)  # fmt: skip
def test_the_nearest_scheme_is_the_one_that_drew_the_weights(name: str) -> None:
    assert nearest(weights(build(CONFIG, schemes.get(name), 0))) == name


def test_weights_of_no_scheme_are_called_that() -> None:
    model = build(CONFIG, schemes.get("gpt2"), 0)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    with torch.no_grad():
        for i, p in enumerate(matrices):
            p.mul_(1 + 3 * (i % 5))
    assert any(v.text.startswith("no scheme is near") for v in weights(model))


def test_a_scheme_times_a_factor_is_named_with_it() -> None:
    model = build(CONFIG, schemes.get("gpt2"), 0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.5)
    found = weights(model)
    assert nearest(found) == "gpt2 × 0.5"
    assert not topics(found)


def test_signs_in_place_of_values_and_a_mean() -> None:
    model = build(CONFIG, schemes.get("gpt2"), 0)
    with torch.no_grad():
        for p in each(model, "mlp.c_fc.weight"):
            p.copy_(p.sign() * 0.02)
        model.transformer.wte.weight.add_(0.002)
    found = {v.topic: v.text for v in weights(model) if v.severity == lint.WARN}
    assert found.keys() == {"quantised", "mean"}  # and rows of signs are not called copies
    assert "c_fc" in found["quantised"]
    assert "wte.weight: its mean 0.00" in found["mean"]


@pytest.mark.numeric
def test_a_role_of_another_distribution_with_the_same_std() -> None:
    model = build(CONFIG, schemes.get("gpt2"), 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in each(model, "c_fc.weight"):
            p.uniform_(-0.02 * 3**0.5, 0.02 * 3**0.5)
    (found,) = [v for v in weights(model) if v.severity == lint.WARN]
    assert found.text.startswith("fc: kurtosis 1.8")


@pytest.mark.numeric
def test_bounds_that_never_cut() -> None:
    """torch's trunc_normal_ has absolute bounds: at std 0.02 the default ±2 is 100 σ away."""
    model = build(CONFIG, schemes.get("full-megatron"), 0)
    assert not topics(weights(model))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in each(model, "c_fc.weight"):
            torch.nn.init.trunc_normal_(p, std=0.02)
    (found,) = [v for v in weights(model) if v.severity == lint.WARN]
    assert found.topic == "truncation"
    assert found.text.startswith("fc reaches")


@pytest.mark.numeric
def test_scales_that_differ_by_block_are_no_bounds_without_effect() -> None:
    """mitchell's projections shrink with the block: one may reach far beyond another one's cut."""
    for seed, config in enumerate((CONFIG, replace(CONFIG, n_layer=24, n_embd=64))):
        assert not topics(weights(build(config, schemes.get("mitchell"), seed)))


def test_gains_around_zero_were_drawn_and_not_trained() -> None:
    model = build(CONFIG, schemes.get("gpt2"), 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in (*each(model, "ln_1.weight"), *each(model, "ln_2.weight")):
            p.normal_(0, 0.02)
    assert topics(weights(model)) == {"gain-drawn"}
