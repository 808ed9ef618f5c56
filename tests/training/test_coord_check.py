from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt_cli import schemes
from nanogpt_cli.errors import UserError
from nanogpt_cli.init.drawing import build, configure
from nanogpt_cli.init.theory import random_tokens
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.training.studies.coord_check import Coordinates, coord_check

CONFIG = GPTConfig(2, 2, 64, 32, 128, 0.0, False, "gelu")
WIDTHS, DEPTHS = (32, 64, 128, 256), (2, 4, 8, 16)


def exponents(found: Coordinates, what: str) -> dict[str, float]:
    return {e.name: e.value for e in found.exponents() if e.what == what}


def keep(seen: dict[str, list[Tensor]], name: str, _module: nn.Module, _in: Any, out: Any) -> None:
    seen.setdefault(name, []).append((out if isinstance(out, Tensor) else out[0]).detach())


@pytest.mark.numeric
def test_sizes_are_those_that_plain_hooks_and_pytorchs_adam_give() -> None:
    """The definition of microsoft/mup: RMS of each module's output at each step, on one batch."""
    found = coord_check(CONFIG, schemes.get("gpt2"), (32, 64), seeds=(3,), steps=3)
    for n, width in enumerate((32, 64)):
        config = replace(CONFIG, n_embd=width, n_head=width // 32)
        model = build(config, schemes.get("gpt2"), 3)
        idx, targets = random_tokens(config, 4, 32, seed=1)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
        )
        seen: dict[str, list[Tensor]] = {}
        watched: list[tuple[str, Any]] = [
            ("stream", model.transformer.h[-1]),
            ("logits", model.lm_head),
        ]
        for block in model.transformer.h:
            watched += [("attn", block.attn), ("mlp", block.mlp)]
        for name, module in watched:
            module.register_forward_hook(partial(keep, seen, name))
        start: dict[str, Tensor] = {}
        for step in range(4):
            seen.clear()
            _, loss = model(idx, targets)
            assert loss is not None
            now = {name: torch.stack(values) for name, values in seen.items()}
            start = start or now
            for name, value in now.items():
                size, change = value.square().mean().sqrt(), (value - start[name]).square().mean()
                assert found.size[name][n][step] == pytest.approx(float(size), rel=1e-3)
                assert found.change[name][n][step] == pytest.approx(
                    math.sqrt(float(change)), rel=2e-2, abs=1e-9
                )
            assert found.losses[n][step] == pytest.approx(float(loss.detach()), abs=1e-4)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_mup_transfers_over_width_and_gpt2_does_not(optimizer: str) -> None:
    mup, gpt2 = (
        coord_check(CONFIG, schemes.get(name), WIDTHS, steps=3, optimizer=optimizer)
        for name in ("mup", "gpt2")
    )
    assert mup.transfers, mup.worst
    assert not gpt2.transfers
    assert exponents(gpt2, "change")["attn"] > 0.5
    assert mup.losses[0][-1] < mup.losses[0][0]


def test_scores_are_those_of_the_attention() -> None:
    """Their factor 1/D keeps them steady over width, because heads keep their size."""
    found = coord_check(CONFIG, schemes.get("mup"), WIDTHS, steps=1)
    assert exponents(found, "size")["scores"] == pytest.approx(0, abs=0.1)
    D = 32
    for width, row in zip(WIDTHS, found.size["scores"], strict=True):
        # std of q·k/D of independent entries of variance q = width·σ² is q/√D; half are masked.
        q = width * 0.02**2 * 256 / width
        unmasked = math.sqrt((32 + 1) / (2 * 32))
        assert row[0] == pytest.approx(q / math.sqrt(D) * unmasked, rel=0.15)


def test_what_shrinks_with_width_is_found_as_well() -> None:
    """Rates divided by the width twice: the wider, the less its branches learn."""
    slow = schemes.parse_custom({"base": "mup", "lr": {"linear": "1 / m^2"}})
    found = coord_check(CONFIG, slow, WIDTHS, steps=3)
    assert not found.transfers
    assert found.worst.what == "change"
    assert found.worst.excess < 0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_completep_transfers_over_depth_and_mup_does_not(optimizer: str) -> None:
    completep, mup = (
        coord_check(CONFIG, schemes.get(n), DEPTHS, over="depth", steps=3, optimizer=optimizer)
        for n in ("completep", "mup")
    )
    assert completep.transfers, completep.worst
    assert not mup.transfers
    assert exponents(mup, "change")["stream"] > 0.4
    # Branches are divided by the depth, so they are as much smaller as there are more of them.
    assert exponents(completep, "size")["mlp"] == pytest.approx(-1, abs=0.1)


def test_a_branch_at_zero_has_no_exponent() -> None:
    found = coord_check(CONFIG, schemes.get("zero-proj"), (32, 64), steps=1, seeds=(0,))
    (size,) = [e for e in found.exponents() if (e.name, e.what) == ("mlp", "size")]
    assert math.isnan(size.value)
    assert size.right


@pytest.mark.parametrize("widths", [(64,), (64, 64), (64, 100)])
def test_a_check_needs_two_fitting_widths(widths: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="width"):
        coord_check(configure(CONFIG, schemes.get("gpt2")), schemes.get("gpt2"), widths)


def test_other_widths_keep_grouped_keys_and_the_mlp_s_proportion() -> None:
    config = GPTConfig(
        2, 4, 32, 8, 11, 0.0, False, "swiglu", norm="rms", position="rope", n_kv_head=2, hidden=48
    )
    shapes = [config.widened(width) for width in (8, 16, 24, 64)]
    assert [(c.n_head, c.kv_heads, c.hidden_size) for c in shapes] == [
        (1, 1, 12), (2, 1, 24), (3, 3, 36), (8, 4, 96),
    ]  # fmt: skip
    assert config.widened(32) == config
    found = coord_check(config, schemes.get("mup"), (8, 16, 32), steps=1)
    assert all(math.isfinite(loss) for losses in found.losses for loss in losses)


def test_heads_that_rope_cannot_turn_are_named() -> None:
    config = GPTConfig(1, 2, 8, 8, 11, 0.0, False, "gelu", position="rope")
    with pytest.raises(UserError, match="rope"):
        coord_check(config, schemes.get("mup"), (3, 6))
