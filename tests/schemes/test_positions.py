"""Positions that begin as sinusoids, and the heads that compare them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from nanogpt_cli import schemes
from nanogpt_cli.errors import UserError
from nanogpt_cli.init import lint
from nanogpt_cli.init.drawing import build, init_tensor, matrices_of
from nanogpt_cli.init.expected import expected_stats
from nanogpt_cli.init.inspect import measure
from nanogpt_cli.init.sources import Drawn
from nanogpt_cli.init.spectral import spectral_norms
from nanogpt_cli.init.tensor_stats import Accumulator, by_class
from nanogpt_cli.init.theory import expect, random_tokens
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.schemes import positions

LOOKBACK = schemes.get("lookback")
CONFIG = GPTConfig(2, 4, 128, 64, 65, 0.0, False, "gelu")
FUSED = "transformer.h.{}.attn.c_attn.weight"


def attention(config: GPTConfig, seed: int, layer: int = 0) -> Tensor:
    """Weights (heads, T, T) of a block on random tokens, by the definition."""
    model = build(config, LOOKBACK, seed).double()
    seen: list[Tensor] = []
    block = model.transformer.h[layer]
    block.ln_1.register_forward_hook(lambda _module, _args, out: seen.append(out[0]))
    ids = torch.randint(
        config.vocab_size, (1, config.block_size), generator=torch.Generator().manual_seed(seed)
    )
    with torch.no_grad():
        model(ids)
        q, k, _ = block.attn.c_attn(seen[0]).split(config.n_embd, -1)
    q, k = (x.view(config.block_size, config.n_head, -1).transpose(0, 1) for x in (q, k))
    scores = q @ k.mT / math.sqrt(config.head_size)
    future = torch.ones(config.block_size, config.block_size).triu(1).bool()
    return scores.masked_fill(future, -math.inf).softmax(-1)


@pytest.mark.numeric
@pytest.mark.parametrize("config", [CONFIG, GPTConfig(1, 12, 768, 64, 1000, 0.0, True, "gelu")])
def test_each_head_of_the_first_block_looks_back_by_its_number(config: GPTConfig) -> None:
    weights = attention(config, 3)
    rows = torch.arange(config.n_head, config.block_size)
    for head in range(config.n_head):
        there = weights[head, rows, rows - head]
        assert torch.equal(weights[head, rows].argmax(-1), rows - head)
        assert float(there.mean()) > 0.5


@pytest.mark.numeric
def test_later_blocks_look_nowhere_in_particular() -> None:
    assert float(attention(CONFIG, 3, layer=1)[:, 32:].amax()) < 0.5


def test_the_position_table_has_the_waves_of_the_formula() -> None:
    table = init_tensor("transformer.wpe.weight", CONFIG, LOOKBACK, 0).numpy()
    t = np.arange(64)[:, None]
    omega = 30.0 ** (-np.arange(4) / 4)
    std = 2 * math.sqrt(2 / (5 * 128))
    waves = std * math.sqrt(2 * 128 / 8) * np.stack([np.cos(omega * t), np.sin(omega * t)], -1)
    np.testing.assert_allclose(table[:, :8], waves.reshape(64, 8), atol=1e-6)
    assert not table[:, 8:].any()
    assert math.sqrt(np.square(table, dtype=np.float64).mean()) == pytest.approx(std, rel=1e-6)


@pytest.mark.parametrize("seeds", [(0, 1)])
def test_no_seed_changes_them(seeds: tuple[int, int]) -> None:
    one, other = (init_tensor(FUSED.format(0), CONFIG, LOOKBACK, seed) for seed in seeds)
    assert torch.equal(one[:256], other[:256])
    assert not torch.equal(one[256:], other[256:])  # values are drawn


@pytest.mark.parametrize("shape", [(64, 128), (7, 5), (1, 1)])
@pytest.mark.parametrize("kind", ["sinusoids", "positions", "offsets"])
def test_moments_are_those_of_the_values(kind: str, shape: tuple[int, int]) -> None:
    head = 5 if shape == (7, 5) else max(1, shape[1] // 4)
    whole = np.zeros(shape)
    for row, column, value in positions.entries(kind, 0.7, shape, head):
        whole[row, column] = value
    found = positions.moments(kind, 0.7, shape, head)
    assert found.mean == pytest.approx(whole.mean(), abs=1e-12)
    assert found.mean_square == pytest.approx(np.square(whole).mean(), rel=1e-12)
    assert found.largest == pytest.approx(np.abs(whole).max(), rel=1e-12)
    if whole.std() > 1e-9:
        fourth = ((whole - whole.mean()) ** 4).mean() / whole.var() ** 2
        assert found.kurtosis == pytest.approx(fourth, rel=1e-9)


@pytest.mark.parametrize(("heads", "width"), [(16, 16), (4, 12), (2, 6), (1, 1)])
def test_heads_of_few_channels_compare_with_those_they_have(heads: int, width: int) -> None:
    config = replace(CONFIG, n_head=heads, n_embd=width)
    model = build(config, LOOKBACK, 0)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert int((model.transformer.wpe.weight != 0).any(0).sum()) == min(8, width // heads)


def test_without_a_position_table_the_laws_of_gpt2_w_hold() -> None:
    config = replace(CONFIG, position="rope", norm="rms", bias=False)
    names = [name for name, _ in build(config, LOOKBACK, 0).named_parameters()]
    for name in names:
        theirs = [m.law for m in matrices_of(name, config, schemes.get("gpt2-w"))]
        assert [m.law for m in matrices_of(name, config, LOOKBACK)] == theirs


@pytest.mark.numeric
def test_spectral_norms_are_known() -> None:
    found = [n for n in spectral_norms(Drawn(CONFIG, LOOKBACK, 0)) if n.key.endswith(("/q", "/k"))]
    for norm in found[:2]:
        assert norm.norm == pytest.approx(norm.expected, rel=1e-4)


def test_another_scale_is_not_the_law() -> None:
    name = FUSED.format(0)
    spec = matrices_of(name, CONFIG, LOOKBACK)[0]
    values = init_tensor(name, CONFIG, LOOKBACK, 0)[:128]
    for factor, severity in ((1.0, lint.OK), (1.001, lint.FAIL)):
        accumulator = Accumulator(spec.shape)
        accumulator.add(values * factor)
        stats = accumulator.stats(spec.key, "q", 0, spec.law, spec.std)
        assert lint.worst(lint.on_laws(by_class([stats]))) == severity


def test_own_schemes_may_have_laws_of_the_first_block() -> None:
    own = schemes.parse_custom({"base": "gpt2", "first": {"v": "normal(0.5)"}})
    by_layer = {
        layer: matrices_of(FUSED.format(layer), CONFIG, own)[2].law.scale for layer in (0, 1)
    }
    assert by_layer == {0: 0.5, 1: 0.02}
    assert "v of block 0 normal(0.5)" in own.formula
    tables = ({"wte": "normal(1)"}, {"embedding": "normal(1)"}, 3, {"q": "offsets()"})
    for first in tables:
        with pytest.raises(UserError):
            schemes.parse_custom({"first": first})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"wpe": "positions(1)"}, "init.wpe cannot be positions(1)"),
        ({"q": "sinusoids(1)"}, "init.q cannot be sinusoids(1)"),
        ({"fc": "offsets(1)"}, "init.fc cannot be offsets(1)"),
        ({"first": {"qkv": "offsets(1)"}}, "init.first.v cannot be offsets(1)"),
    ],
)
def test_laws_of_positions_are_for_tables_and_queries_and_keys(
    table: dict[str, object], message: str
) -> None:
    """Elsewhere they mean nothing; a table shorter than a head would have no value at all."""
    with pytest.raises(UserError) as raised:
        schemes.parse_custom({"base": "gpt2-w", **table})
    assert message in str(raised.value)


@pytest.mark.numeric
@pytest.mark.parametrize("tokens", ["constant(0)", "normal(1e-9)"])
def test_theory_of_a_stream_that_holds_positions_alone(tokens: str) -> None:
    """All that the heads read is known: the scores are those of the design."""
    own = schemes.parse_custom({"base": "lookback", "wte": tokens})
    idx, targets = random_tokens(CONFIG, 1, 48, 0)
    expected = expect(CONFIG, own, idx, targets, backward=False)
    found = measure(Drawn(CONFIG, own, 0), idx, targets, backward=False).signals
    # LayerNorm takes the mean of the waves off, which theory leaves out.
    assert expected.score_std[0] == pytest.approx(found.score_std[0], rel=0.1)
    assert expected.attn_entropy[0] == pytest.approx(found.attn_entropy[0], abs=0.05)


def test_statistics_are_expected_where_only_later_blocks_compare_positions() -> None:
    table = {"base": "lookback", "q": "offsets(1)", "k": "positions(1)",
             "first": {"q": "normal(0.02)", "k": "normal(0.02)"}}  # fmt: skip
    rows = expected_stats(CONFIG, schemes.parse_custom(table))
    assert rows["attn_score_std"][0] < 0.5 < rows["attn_score_std"][1]
