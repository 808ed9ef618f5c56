from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nanogpt_cli import schemes
from nanogpt_cli.init.drawing import build
from nanogpt_cli.init.exponents import angle_exponent, exponents
from nanogpt_cli.init.probes import mean_cosine
from nanogpt_cli.init.theory import expect, random_tokens
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.schemes import Scheme

CONFIG = GPTConfig(6, 4, 256, 64, 1000, 0.0, False, "gelu")


def only(branch: str, std: float = 0.05) -> Scheme:
    """Large embeddings, against which LayerNorm's ε is nothing, and one branch of the two."""
    off = "mlp_proj" if branch == "attention" else "attn_proj"
    return schemes.parse_custom(
        {"embedding": "normal(1)", "linear": f"normal({std})", off: "constant(0)"}
    )


def test_blocks_that_add_nothing_have_neither() -> None:
    scheme = schemes.get("zero-proj")
    idx, targets = random_tokens(CONFIG, 1, 32, seed=0)
    found = exponents(CONFIG, scheme, expect(CONFIG, scheme, idx, targets))
    assert found.angle == pytest.approx(0, abs=1e-6)
    assert found.gradient == pytest.approx(0, abs=1e-6)


def test_attention_alone_collapses_the_tokens() -> None:
    """What it adds is the same for all, so 1 - cosine shrinks as the stream's power grows."""
    d, std = CONFIG.n_embd, 0.05
    added = (d * std**2) ** 2  # per block: values, then their projection
    expected = -math.log((2 + CONFIG.n_layer * added) / 2) / CONFIG.n_layer
    found = angle_exponent(CONFIG, only("attention", std))
    assert found < 0
    assert found == pytest.approx(expected, rel=0.08)


def test_a_relu_mlp_alone_is_at_the_edge() -> None:
    """Its kernel has slope 1 where tokens agree (Cho and Saul 2009): neither order nor chaos."""
    found = angle_exponent(replace(CONFIG, activation="relu"), only("mlp"))
    assert found == pytest.approx(0, abs=2e-3)


def test_a_gelu_mlp_alone_drives_tokens_apart() -> None:
    """E[φ′²]·q exceeds E[φ²] where GELU bends, and no longer where it is as good as ReLU."""
    bent = angle_exponent(CONFIG, only("mlp", 0.05))
    straight = angle_exponent(CONFIG, only("mlp", 2.0))
    assert bent > 0.01
    assert 0 < straight < bent


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["normal", "lecun"])
def test_the_angle_exponent_is_that_of_a_drawn_model(name: str) -> None:
    """Vectors that nearly agree, sent through the blocks of eight drawn models (±0.015)."""
    scheme = schemes.get(name)
    apart, lost = 1e-4, []
    for seed in range(8):
        model = build(CONFIG, scheme, seed).double()
        rng = torch.Generator().manual_seed(seed)
        common = torch.randn(CONFIG.n_embd, generator=rng).double()
        own = torch.randn(1, 64, CONFIG.n_embd, generator=rng).double()
        x = 0.02 * math.sqrt(2) * (math.sqrt(1 - apart) * common + math.sqrt(apart) * own)
        before = 1 - mean_cosine(x)
        with torch.no_grad():
            for block in model.transformer.h:
                x = block(x)
        lost.append(math.log((1 - mean_cosine(x)) / before) / CONFIG.n_layer)
    measured = sum(lost) / len(lost)
    assert angle_exponent(CONFIG, scheme) == pytest.approx(measured, abs=0.04)


def test_the_gradient_exponent_is_that_of_the_ratio() -> None:
    scheme = schemes.get("normal")
    idx, targets = random_tokens(CONFIG, 1, 32, seed=0)
    signals = expect(CONFIG, scheme, idx, targets)
    found = exponents(CONFIG, scheme, signals).gradient
    assert math.exp(found * CONFIG.n_layer / 2) == pytest.approx(signals.gradient_ratio)
    assert found > 0.3


def test_without_a_stream_or_a_gradient_there_is_no_exponent() -> None:
    empty = schemes.parse_custom({"embedding": "constant(0)", "linear": "constant(0)"})
    idx, targets = random_tokens(CONFIG, 1, 32, seed=0)
    found = exponents(CONFIG, empty, expect(CONFIG, empty, idx, targets))
    assert math.isnan(found.angle)
    assert math.isnan(found.gradient)
