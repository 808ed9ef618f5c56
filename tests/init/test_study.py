from __future__ import annotations

import math

import pytest

from nanogpt_cli import schemes
from nanogpt_cli.errors import UserError
from nanogpt_cli.init import lint_signals, study
from nanogpt_cli.init.drawing import build
from nanogpt_cli.model.accounting import account
from nanogpt_cli.model.gpt import GPTConfig

CONFIG = GPTConfig(4, 2, 64, 32, 300, 0.0, False, "gelu")


def test_residual_scale_ablated_is_normal() -> None:
    idx, targets = study.scan_tokens(CONFIG)
    _, without = study.ablate(CONFIG, schemes.get("gpt2"), ["residual-scale"])
    normal = study.schemes_of(CONFIG, [schemes.get("normal")])[0]
    assert without.expected(idx, targets) == normal.expected(idx, targets)


def test_without_tying_the_model_does_not_favour_the_token_it_read() -> None:
    idx, targets = study.scan_tokens(CONFIG)
    tied, untied = study.ablate(CONFIG, schemes.get("gpt2"), ["tying"])
    assert tied.expected(idx, targets).own_logit > 0.5
    assert untied.expected(idx, targets).own_logit == 0
    assert abs(untied.measured(idx, targets, 0).own_logit) < 0.1


def test_ablations_switch_back_what_is_off() -> None:
    names = [v.name for v in study.ablate(CONFIG, schemes.get("gpt2"), ["bias", "ln"])]
    assert names == ["gpt2", "+ bias", "- ln"]
    with pytest.raises(UserError, match="unknown ablation"):
        study.ablate(CONFIG, schemes.get("gpt2"), ["dropout"])


def test_a_scan_holds_everything_else() -> None:
    found = dict(study.scan(CONFIG, schemes.get("mup"), "width"))
    assert 64 in found
    assert {v.config.n_layer for v in found.values()} == {4}
    assert {v.config.head_size for v in found.values()} == {32}
    assert found[1024].config.multipliers.output == 0.25
    with pytest.raises(UserError, match="is unknown"):
        list(study.scan(CONFIG, schemes.get("mup"), "heads"))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_account_counts_what_the_model_has(bias: bool, tied: bool) -> None:
    config = GPTConfig(3, 2, 32, 16, 100, 0.0, bias, "swiglu", tied)
    model = build(config, schemes.get("gpt2"), 0)
    found = account(config)
    assert found.parameters == model.n_parameters()
    assert found.non_embedding == model.n_parameters(embedding=False)
    assert found.decayed == sum(p.numel() for p in model.parameters() if p.dim() == 2)


def test_gpt2_small_has_124_million_parameters() -> None:
    found = account(GPTConfig(12, 12, 768, 1024, 50257, 0.0, True, "gelu"))
    assert found.parameters == 124_439_808


def test_a_scheme_with_a_head_of_its_own_is_compared_untied() -> None:
    own, nanochat = study.schemes_of(CONFIG, [schemes.get("gpt2"), schemes.get("nanochat")])
    assert (own.name, own.config.tied) == ("gpt2", True)
    assert (nanochat.name, nanochat.config.tied) == ("nanochat untied", False)
    idx, targets = study.scan_tokens(CONFIG)
    assert nanochat.expected(idx, targets).loss_any == pytest.approx(
        math.log(CONFIG.vocab_size), abs=0.01
    )


def test_branches_without_layer_norm_are_said_to_vanish() -> None:
    """They are at zero in some schemes, by intention; that is no finding."""
    idx, targets = study.scan_tokens(CONFIG)
    whole, without = study.ablate(CONFIG, schemes.get("gpt2"), ["ln"])
    zero = study.Variant("zero-proj", CONFIG, schemes.get("zero-proj"))
    topics = [
        [
            v.topic
            for v in lint_signals.on_signals(
                x.expected(idx, targets), x.config, layer_norm=x.layer_norm
            )
        ]
        for x in (whole, without, zero)
    ]
    assert ["branches" in row for row in topics] == [False, True, False]
