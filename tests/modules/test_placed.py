"""Matrices that compare positions by design are told from draws, and from damage."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nanogpt_cli as ng
from nanogpt_cli import schemes
from nanogpt_cli.init.drawing import build
from nanogpt_cli.init.lint import OK, WARN
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.modules.faults.placed import is_placed
from nanogpt_cli.modules.inspection import judge_weights

C = 64


def model(heads: int = 4) -> GPT:
    config = GPTConfig(3, heads, C, 32, 300, 0.0, False, "gelu")
    return build(config, schemes.get("lookback"), 1)


def matrices(of: GPT) -> dict[str, Tensor]:
    q, k, v = of.transformer.h[0].attn.c_attn.weight.detach().split(C)
    return {"wpe": of.transformer.wpe.weight.detach(), "q": q, "k": k, "v": v}


@pytest.mark.parametrize("heads", [1, 4, 16])
def test_the_three_matrices_are_recognised(heads: int) -> None:
    found = matrices(model(heads))
    for role in ("wpe", "q", "k"):
        assert is_placed(role, found[role])
        assert is_placed(role, 3.0 * found[role])
        assert is_placed(role, found[role].bfloat16().float())
        assert not is_placed("fc", found[role])
    assert not any(is_placed(role, found["v"]) for role in ("wpe", "q", "k"))


@pytest.mark.parametrize("role", ["wpe", "q", "k"])
def test_a_changed_value_or_an_empty_matrix_is_not_by_design(role: str) -> None:
    values = matrices(model())[role].clone()
    for row, column, value in ((1, 1, 0.2), (C // 2 - 1, C - 1, 0.1)):
        other = values.clone()
        other[row % len(other), column] += value
        assert not is_placed(role, other)
    assert not is_placed(role, torch.zeros_like(values))
    values[: len(values) // 4] = 0
    assert not is_placed(role, values)


def test_a_start_is_said_to_look_back_and_damage_to_it_is_named() -> None:
    start = model()
    verdicts, trained = judge_weights(start)
    assert not trained
    assert [v.severity for v in verdicts if v.topic == "positions"] == [OK]
    with torch.no_grad():
        start.transformer.h[0].attn.c_attn.weight[:C].mul_(torch.rand(C, C))
    verdicts, _ = judge_weights(start)
    named = [v.text for v in verdicts if v.severity not in (OK, "note")]
    assert any("h.0.attn.c_attn" in text for text in named)


@pytest.mark.numeric
def test_scores_that_are_large_by_design_are_no_warning() -> None:
    verdicts = ng.inspect(model()).verdicts
    assert not [v.text for v in verdicts if v.severity in (WARN, "fail")]


@pytest.mark.parametrize("heads", [1, 4])
def test_what_trained_since_is_no_damage(heads: int) -> None:
    """Rows of a head that no position reaches are zero in queries and keys, and stay so."""
    grown = model(heads)
    optimizer = torch.optim.AdamW(grown.parameters(), lr=1e-2)
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        ids = torch.randint(300, (2, 32), generator=random)
        optimizer.zero_grad()
        grown.loss(ids, ids.roll(-1, 1)).backward()
        optimizer.step()
    verdicts, _ = judge_weights(grown, trained=True)
    assert [v.severity for v in verdicts if v.topic == "positions"] == ["note"] * 2
    assert not [v.text for v in verdicts if v.severity in (WARN, "fail")]
    with torch.no_grad():
        grown.transformer.h[0].attn.c_attn.weight[2:5] = 0
    verdicts, _ = judge_weights(grown, trained=True)
    assert "zero-lines" in {v.topic for v in verdicts if v.severity == WARN}


def test_a_first_step_at_a_small_rate_leaves_a_start_by_design() -> None:
    """AdamW moves every value by the rate, also those that began at zero."""
    start = model()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (start.transformer.wpe.weight, start.transformer.h[0].attn.c_attn.weight):
            reached = tensor.any(1, keepdim=True)  # the other rows have no gradient
            tensor += 1e-8 * torch.randn(tensor.shape, generator=random) * reached
    found = matrices(start)
    assert all(is_placed(role, found[role]) for role in ("wpe", "q", "k"))
    verdicts, _ = judge_weights(start)
    assert not [v.text for v in verdicts if v.severity in (WARN, "fail")]


@pytest.mark.parametrize("length", [1, 3])
def test_a_model_of_very_few_positions_can_be_judged(length: int) -> None:
    config = GPTConfig(2, 4, C, length, 300, 0.0, False, "gelu")
    verdicts, _ = judge_weights(build(config, schemes.get("gpt2"), 1))
    assert not [v.text for v in verdicts if v.severity == "fail"]
