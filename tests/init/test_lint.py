from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from nanogpt_cli import schemes
from nanogpt_cli.init import detect, lint, lint_signals
from nanogpt_cli.init.drawing import build, configure
from nanogpt_cli.init.inspect import measure
from nanogpt_cli.init.lint import Verdict
from nanogpt_cli.init.sources import Drawn, Stored
from nanogpt_cli.init.tensor_stats import by_class
from nanogpt_cli.init.theory import expect, random_tokens
from nanogpt_cli.model.gpt import GPT, GPTConfig

CONFIG = GPTConfig(6, 2, 128, 32, 1000, 0.0, False, "gelu")


def judged(model: GPT, scheme: str) -> list[Verdict]:
    """Lint a model by the scheme that it is declared to follow."""
    declared = schemes.get(scheme)
    source = Stored(model.config, dict(model.named_parameters()).__getitem__, declared)
    idx, targets = random_tokens(model.config, 1, 16, seed=0)
    found = measure(source, idx, targets, backward=False)
    signals = lint_signals.on_signals(found.signals, model.config)
    return lint.on_scheme(declared, by_class(found.tensors)) + signals


def topics(verdicts: list[Verdict]) -> set[str]:
    return {v.topic for v in verdicts if v.severity in (lint.WARN, lint.FAIL)}


def each(model: GPT, leaf: str) -> list[torch.nn.Parameter]:
    return [p for n, p in model.named_parameters() if n.endswith(leaf)]


@pytest.mark.parametrize("kind", ["wte", "wpe", "fc", "q", "v", "attn_proj", "mlp_proj"])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_ten_percent_in_one_class_is_found_and_named(kind: str, factor: float) -> None:
    gpt2 = schemes.get("gpt2")
    rule = gpt2.rules[kind]
    changed = schemes.parse_custom({kind: f"{rule.kind}({factor} * ({rule.formula}))"})
    model = build(CONFIG, changed, 0)
    declared = [v for v in judged(model, "gpt2") if v.topic == "law"]
    assert len(declared) == 1
    assert declared[0].severity == lint.FAIL
    assert kind in declared[0].text
    std = 0.02 / math.sqrt(12) if kind.endswith("proj") else 0.02
    assert declared[0].value == pytest.approx(factor * std, rel=0.02)


def test_a_few_values_beyond_the_cut_are_enough() -> None:
    """In a small matrix the std of a normal and of a truncated law differ by less than chance."""
    config = replace(CONFIG, n_layer=2, n_head=1, n_embd=64)
    model = build(config, schemes.get("full-megatron"), 7)
    torch.manual_seed(7)
    with torch.no_grad():
        for p in each(model, "c_fc.weight"):
            torch.nn.init.trunc_normal_(p, std=0.02)
    (found,) = [v for v in judged(model, "full-megatron") if v.topic == "law"]
    assert "the law is cut at" in found.text


def test_bounds_that_never_cut() -> None:
    """torch's trunc_normal_ has absolute bounds: at std 0.02 the default ±2 is 100 σ away."""
    model = build(CONFIG, schemes.get("full-megatron"), 0)
    assert not topics(judged(model, "full-megatron"))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in each(model, "c_fc.weight"):
            torch.nn.init.trunc_normal_(p, std=0.02)
    (found,) = [v for v in judged(model, "full-megatron") if v.topic == "law"]
    assert found.text.startswith("fc")
    declared = schemes.parse_custom({"fc": "truncated(0.02, 100)"})
    assert topics(lint.on_scheme(declared)) == {"truncation"}


def test_a_wrong_shape_of_distribution_is_found() -> None:
    model = build(CONFIG, schemes.get("normal"), 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in each(model, "c_fc.weight"):
            p.uniform_(-0.02 * 3**0.5, 0.02 * 3**0.5)
    (found,) = [v for v in judged(model, "normal") if v.topic == "law"]
    assert "kurtosis 1.8" in found.text


def clean(name: str, seed: int, config: GPTConfig) -> tuple[set[str], set[str]]:
    """Topics warned of in a drawn model, and those its theory alone is warned of."""
    scheme = schemes.get(name)
    config = configure(config, scheme)
    idx, targets = random_tokens(config, 1, 32, seed)
    found = measure(Drawn(config, scheme, seed), idx, targets)
    expected = expect(config, scheme, idx, targets)
    laws = lint.on_scheme(scheme, by_class(found.tensors))
    drawn = lint_signals.on_signals(found.signals, config, expected)
    theory = lint_signals.on_signals(expected, config) + lint.on_scheme(scheme)
    return topics(laws + drawn), topics(theory)


SHAPES = (
    CONFIG,
    replace(CONFIG, bias=True, n_layer=3, n_embd=64),
    replace(CONFIG, n_layer=8, n_head=1, n_embd=64, vocab_size=65, activation="silu"),
    replace(CONFIG, n_layer=2, activation="swiglu", tied=False),
)


@pytest.mark.parametrize("name", schemes.names())
def test_no_false_alarm_on_a_clean_model(name: str) -> None:
    """A drawn model is warned of nothing but what its law itself is warned of."""
    for seed, config in enumerate(SHAPES):
        drawn, theory = clean(name, seed, config)
        assert drawn <= theory


@pytest.mark.parametrize(
    ("name", "topic", "where", "limit"),
    [
        ("small-wang", "rank-collapse", "cosine", lint_signals.MAX_COSINE),
        ("lecun", "score-std", "score_std", lint_signals.MAX_SCORE_STD),
        ("scaled-1L", "silent-units", "near_zero", lint_signals.MAX_NEAR_ZERO),
    ],
)
def test_a_limit_passed_by_chance_is_a_note(
    name: str, topic: str, where: str, limit: float
) -> None:
    scheme = schemes.get(name)
    theory = expect(CONFIG, scheme, *random_tokens(CONFIG, 1, 32, seed=0))

    def judged(expected: float, measured: float) -> str:
        one, other = (replace(theory, **{where: [0.0, x]}) for x in (measured, expected))
        found = lint_signals.on_signals(one, CONFIG, other)
        return next((v.severity for v in found if v.topic == topic), lint.OK)

    assert judged(0.97 * limit, 0.99 * limit) == lint.OK
    assert judged(0.97 * limit, 1.01 * limit) == lint.NOTE  # this draw, not its law
    assert judged(1.005 * limit, 1.01 * limit) == lint.WARN
    assert judged(0.1 * limit, 1.5 * limit) == lint.WARN  # no chance reaches so far


@pytest.mark.parametrize("name", ["gpt2", "gpt2-w", "small-wang", "mup", "full-megatron",
                                  "scaled-1L", "layer-index"])  # fmt: skip
def test_good_schemes_pass_without_a_warning(name: str) -> None:
    assert not clean(name, 1, CONFIG)[0]


@pytest.mark.parametrize(
    ("name", "topic"),
    [("pytorch", "token-share"), ("pytorch-embtie", "own-token"), ("nanochat", "mismatch")],
)
def test_bad_schemes_are_called_bad(name: str, topic: str) -> None:
    assert topic in clean(name, 0, CONFIG)[0]


def test_normal_at_depth_warns_of_growth_and_gradients() -> None:
    config = GPTConfig(48, 12, 768, 64, 50304, 0.0, False, "gelu")
    idx, targets = random_tokens(config, 1, 32, seed=0)
    for name, warned in (("gpt2", set()), ("normal", {"growth", "gradients", "first-block"})):
        theory = expect(config, schemes.get(name), idx, targets)
        assert topics(lint_signals.on_signals(theory, config)) == warned


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("gpt2", r"normal\(0\.0(199\d|2|200\d)\)"), ("pytorch", r"uniform\(0\.05"),
     ("mitchell", r"truncated\(0\.08\d+, ±3σ\)"), ("orthogonal", r"orthogonal\(1\)"),
     ("kaiming", r"normal\(0\.12")],
)  # fmt: skip
def test_laws_are_named_from_moments(name: str, pattern: str) -> None:
    model = build(CONFIG, schemes.get(name), 0)
    source = Stored(CONFIG, dict(model.named_parameters()).__getitem__)
    idx, targets = random_tokens(CONFIG, 1, 4, seed=0)
    tensors = {t.key: t for t in measure(source, idx, targets).tensors}
    law = detect.guess_law(tensors["transformer.h.0.mlp.c_fc.weight"], CONFIG.n_layer)
    assert re.fullmatch(pattern + ".*", law)
