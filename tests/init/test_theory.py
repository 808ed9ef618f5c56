from __future__ import annotations

import math
import statistics

import pytest
import torch

from nanogpt_cli import recipe, schemes
from nanogpt_cli.errors import UserError
from nanogpt_cli.init.attention_theory import group_sizes
from nanogpt_cli.init.drawing import build, configure
from nanogpt_cli.init.expected import QUERIES, expected_stats
from nanogpt_cli.init.inspect import measure
from nanogpt_cli.init.signals import Signals
from nanogpt_cli.init.sources import Drawn
from nanogpt_cli.init.theory import (
    Variances,
    dropout_factors,
    expect,
    initial_loss,
    random_tokens,
)
from nanogpt_cli.machine import device
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.training.stats import Collector

COMPARED = (
    *("gpt2", "gpt2-tf", "normal", "scaled-1L", "proj-sqrt2L", "proj-x0.02", "scaled-all"),
    *(
        "layer-index",
        "pytorch",
        "small-wang",
        "mitchell",
        "mup",
        "gpt2-w",
        "orthogonal",
        "lookback",
    ),
)


def both(
    name: str, *, L: int = 4, d: int = 192, seeds: int = 2, activation: str = "gelu",
    bias: bool = False, T: int = 64,
) -> tuple[list[Signals], Signals]:  # fmt: skip
    scheme = schemes.get(name)
    plain = GPTConfig(L, d // 64, d, 64, 1000, 0.0, bias, activation)
    config = configure(plain, scheme)
    idx, targets = random_tokens(config, 2, T, seed=5)
    found = [measure(Drawn(config, scheme, s), idx, targets).signals for s in range(seeds)]
    return found, expect(config, scheme, idx, targets)


def mean(rows: list[list[float]]) -> list[float]:
    return [statistics.fmean(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("name", COMPARED)
def test_theory_agrees_with_measurement(name: str) -> None:
    """Residual RMS within 5 % at every depth, gradient ratio within 10 %, loss within its noise."""
    found, theory = both(name)
    for measured, expected in zip(
        mean([s.stream_rms for s in found]), theory.stream_rms, strict=True
    ):
        assert measured == pytest.approx(expected, rel=0.05)
    ratio = statistics.fmean(s.gradient_ratio for s in found)
    assert ratio == pytest.approx(theory.gradient_ratio, rel=0.10)
    noise = theory.logit_std / math.sqrt(2 * 128)  # of the targets' logits, two seeds
    assert statistics.fmean(s.loss for s in found) == pytest.approx(theory.loss, abs=4 * noise)
    assert statistics.fmean(s.loss_any for s in found) == pytest.approx(theory.loss_any, abs=0.02)
    assert found[0].logit_std == pytest.approx(theory.logit_std, rel=0.06)
    for one, other in zip(found[0].mlp_rms, theory.mlp_rms, strict=True):
        assert one == pytest.approx(other, rel=0.08, abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "normal"])
def test_theory_agrees_at_depth_48(name: str) -> None:
    found, theory = both(name, L=48, T=32)
    measured = mean([s.stream_rms for s in found])
    assert measured == pytest.approx(theory.stream_rms, rel=0.05)
    off = [abs(m / e - 1) for m, e in zip(measured, theory.stream_rms, strict=True)]
    assert statistics.median(off) < 0.03
    ratio = statistics.fmean(s.gradient_ratio for s in found)
    assert ratio == pytest.approx(theory.gradient_ratio, rel=0.10)


@pytest.mark.parametrize("activation", ["gelu_tanh", "relu", "relu2", "silu", "swiglu"])
def test_theory_knows_every_activation(activation: str) -> None:
    found, theory = both("small-wang", activation=activation)
    last = statistics.fmean(s.stream_rms[-1] for s in found)
    assert last == pytest.approx(theory.stream_rms[-1], rel=0.05)
    ratio = statistics.fmean(s.gradient_ratio for s in found)
    assert ratio == pytest.approx(theory.gradient_ratio, rel=0.10)  # one seed scatters by 8 %


def test_hot_attention_is_sampled_and_still_right() -> None:
    found, theory = both("kaiming", T=48)
    assert theory.score_std[0] > 1.5
    assert found[0].attn_entropy[0] == pytest.approx(theory.attn_entropy[0], abs=0.03)
    last = statistics.fmean(s.stream_rms[-1] for s in found)
    assert last == pytest.approx(theory.stream_rms[-1], rel=0.07)


def test_biases_take_part() -> None:
    found, theory = both("pytorch", bias=True)
    assert found[0].stream_rms[-1] == pytest.approx(theory.stream_rms[-1], rel=0.05)
    without = both("pytorch", seeds=1)[1]
    assert theory.mlp_rms[0] > 1.005 * without.mlp_rms[0]


def test_gpt2_is_independent_of_depth_and_normal_is_not() -> None:
    growth = {
        (name, L): both(name, L=L, seeds=0)[1].growth for name in ("gpt2", "normal")
        for L in (4, 16)
    }  # fmt: skip
    assert growth["gpt2", 16] == pytest.approx(growth["gpt2", 4], rel=0.05)
    assert growth["normal", 16] > 1.8 * growth["normal", 4]


def test_published_values_of_gpt2_small() -> None:
    """ln V + 0.154 at V = 50257, and the stream of 12 layers at 768 channels."""
    scheme = schemes.get("gpt2")
    config = GPTConfig(12, 12, 768, 1024, 50257, 0.0, False, "gelu")
    idx, targets = random_tokens(config, 1, 128, seed=0)
    found = expect(config, scheme, idx, targets, backward=False)
    assert found.loss == pytest.approx(10.979, abs=0.002)
    assert found.stream_rms[0] == pytest.approx(0.0283, abs=1e-4)
    assert found.stream_rms[-1] == pytest.approx(0.295, rel=0.02)
    assert found.score_std[0] == pytest.approx(0.30, abs=0.01)


def test_mup_is_the_same_at_every_width() -> None:
    last = []
    for d in (128, 256, 1024):
        scheme = schemes.get("mup")
        config = configure(GPTConfig(4, d // 64, d, 64, 2000, 0.0, False, "gelu"), scheme)
        last.append(expect(config, scheme, *random_tokens(config, 1, 64, seed=0)).stream_rms[-1])
    assert max(last) / min(last) < 1.05


@pytest.mark.parametrize("mean", [3.0, 9.0])
@pytest.mark.parametrize("variance", [0.1, 1.9, 2.1, 8.0])
def test_loss_formula_against_sampled_logits(variance: float, mean: float) -> None:
    V = 1000
    z = torch.randn(4000, V, generator=torch.Generator().manual_seed(1)) * math.sqrt(variance)
    z[:, 0] = mean + z[:, 0] / 2  # the token just read
    sampled = float(z.logsumexp(1).mean())
    own, noise, repeats = torch.tensor([[mean], [variance / 4], [0.0]]).double()
    tolerance = 0.03 if variance < 2 else 0.15
    assert initial_loss(V, variance, own, noise, repeats) == pytest.approx(sampled, abs=tolerance)


def test_a_large_own_logit_is_expected_with_its_scatter() -> None:
    """Branches of almost nothing leave a logit of 9.6; its noise and ε make the loss 0.09 less."""
    scheme = schemes.get("proj-x0.02")
    config = GPTConfig(1, 12, 768, 128, 5000, 0.0, False, "gelu")
    off = []
    for seed in range(4):
        idx, targets = random_tokens(config, 1, 128, seed)
        theory = expect(config, scheme, idx, targets, backward=False)
        found = measure(Drawn(config, scheme, seed), idx, targets, backward=False).signals
        off.append(found.loss_any - theory.loss_any)
        assert found.logit_std == pytest.approx(theory.logit_std, abs=2e-3)
    assert abs(sum(off) / len(off)) < 0.03


def test_a_repeated_token_lowers_the_loss_by_its_logit() -> None:
    own = torch.full((1,), 2.0).double()
    nothing, one = torch.zeros(1).double(), torch.ones(1).double()
    different = initial_loss(1000, 0.3, own, nothing, nothing)
    same = initial_loss(1000, 0.3, own, nothing, one)
    assert different - same == pytest.approx(2.0)


def test_a_sequence_of_one_token_has_no_cosine_and_uniform_attention() -> None:
    found, theory = both("gpt2", T=1, seeds=1, L=2)
    assert math.isnan(theory.cosine[0])
    assert math.isnan(found[0].cosine[0])
    assert theory.attn_entropy == found[0].attn_entropy == [1.0, 1.0]


def test_two_sequences_do_not_see_each_other() -> None:
    scheme = schemes.get("small-wang")
    config = GPTConfig(3, 2, 128, 32, 500, 0.0, False, "gelu")
    idx, targets = random_tokens(config, 2, 32, seed=0)
    together = expect(config, scheme, idx, targets, backward=False)
    apart = [expect(config, scheme, idx[i : i + 1], targets[i : i + 1], backward=False)
             for i in range(2)]  # fmt: skip
    for name in ("stream_rms", "attn_rms"):
        halves = zip(getattr(apart[0], name), getattr(apart[1], name), strict=True)
        mixed = [math.sqrt((a * a + b * b) / 2) for a, b in halves]
        assert getattr(together, name) == pytest.approx(mixed, rel=0.02)


@pytest.mark.parametrize(
    ("name", "d", "vocab", "activation", "attn"),
    [("gpt2", 384, 65, "gelu", 0.03), ("pytorch", 256, 65, "relu", 0.01),
     ("normal", 1600, 50304, "gelu", 0.05), ("kaiming", 256, 1000, "gelu", 0.15)],
)  # fmt: skip
def test_groups_of_positions_agree_with_every_position(
    name: str, d: int, vocab: int, activation: str, attn: float
) -> None:
    """Expanded attention for the first two, sampled (which scatters by itself) for the others."""
    scheme, T = schemes.get(name), 256
    config = configure(GPTConfig(3, d // 64, d, T, vocab, 0.0, False, activation), scheme)
    idx, targets = random_tokens(config, 1, T, seed=1)
    sizes = group_sizes(T)
    assert int(sizes.sum()) == T
    assert len(sizes) < 0.4 * T
    last = QUERIES if attn < 0.05 else 0  # sampled scores of a few queries scatter too much
    slow = expect(config, scheme, idx, targets, backward=False, last=last)
    fast = expect(config, scheme, idx, targets, backward=False, last=last, sizes=sizes)
    assert fast.stream_rms == pytest.approx(slow.stream_rms, rel=0.02)
    assert fast.attn_rms == pytest.approx(slow.attn_rms, rel=attn)
    assert fast.mlp_rms == pytest.approx(slow.mlp_rms, rel=0.01)
    assert fast.near_zero == pytest.approx(slow.near_zero, rel=0.1, abs=1e-9)
    assert fast.attn_entropy == pytest.approx(slow.attn_entropy, rel=max(0.03, attn / 2))
    assert fast.score_std == pytest.approx(slow.score_std, rel=0.2)


@pytest.mark.parametrize("name", ["gpt2", "pytorch"])
def test_a_run_measures_what_its_expectation_says(name: str) -> None:
    """Over the whole context, with the attention of the last queries, on repetitive tokens."""
    scheme = schemes.get(name)
    config = configure(GPTConfig(3, 4, 256, 512, 65, 0.0, False, "gelu"), scheme)
    ids = torch.randint(8, (2, 512), generator=torch.Generator().manual_seed(0)) ** 2
    expected = expected_stats(config, scheme, ids)
    plain = device.choose(recipe.Train(device="cpu", precision="fp32"))
    collector = Collector(build(config, scheme, 0), ids, plain, every=1, budget=1.0)
    seen = collector.activations().complete()
    room = {"attn_rms": 0.1, "attn_score_std": 0.25, "attn_entropy": 0.01}
    fields = ["resid_rms", "resid_kurtosis", "mlp_rms", "preact_std", "dead", *room]
    assert ("attn_first" in expected) == (name == "gpt2")  # PyTorch's attention is not uniform
    if "attn_first" in expected:
        fields.append("attn_first")
    for field in fields:
        measured = [float(value) for value in seen[field]]
        assert measured == pytest.approx(expected[field], rel=room.get(field, 0.05)), field


def test_expected_stats_have_the_names_and_length_of_layers_events() -> None:
    from nanogpt_cli.training import stats

    scheme = schemes.get("gpt2")
    config = GPTConfig(5, 2, 64, 32, 100, 0.0, False, "gelu")
    found = expected_stats(config, scheme)
    assert set(found) <= set(stats.NAMES)
    assert {len(row) for row in found.values()} == {5}
    # RMS over 4d² entries of 0.02, d² + 4d² of 0.02/√10, and 3d²... per block: by hand.
    share = (3 + 4) * 0.02**2 + (1 + 4) * 0.02**2 / 10
    assert found["weight_rms"][0] == pytest.approx(math.sqrt(share / 12))


def test_no_layer_norm_leaves_the_stream_to_itself() -> None:
    scheme = schemes.get("gpt2")
    config = GPTConfig(3, 2, 128, 32, 500, 0.0, False, "gelu")
    idx, targets = random_tokens(config, 1, 32, seed=0)
    theory = expect(config, scheme, idx, targets, layer_norm=False)
    found = measure(Drawn(config, scheme, 0), idx, targets, layer_norm=False).signals
    assert found.stream_rms == pytest.approx(theory.stream_rms, rel=0.05)
    assert found.gradient_ratio == pytest.approx(theory.gradient_ratio, rel=0.1)
    assert found.loss == pytest.approx(theory.loss, abs=0.01)


def test_an_unknown_scheme_never_gets_here() -> None:
    with pytest.raises(UserError):
        both("gpt-two")


def powers(found: Signals) -> list[float]:
    """Mean squares of the gradient at the embedding and of each class of weights."""
    rows = [found.grad_rms[:1], *found.weight_grad.values()]
    return [statistics.fmean(g * g for g in row) for row in rows]


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_a_small_vocabulary(tied: bool) -> None:
    """The softmaxes of two positions agree: without that, gradients of 65 words are a tenth off.

    Over 8 draws the measured mean scatters by 3 %.
    """
    scheme = schemes.get("gpt2")
    config = configure(GPTConfig(4, 8, 512, 64, 65, 0.0, False, "gelu", tied), scheme)
    squares: list[list[float]] = []
    for seed in range(8):
        idx, targets = random_tokens(config, 2, 64, seed)
        measured = measure(Drawn(config, scheme, seed), idx, targets).signals
        expected = expect(config, scheme, idx, targets)
        squares.append(
            [x for pair in zip(powers(measured), powers(expected), strict=True) for x in pair]
        )
    means = mean(squares)
    for one, other in zip(means[::2], means[1::2], strict=True):
        assert math.sqrt(one / other) == pytest.approx(1, abs=0.07)


def test_the_score_std_of_hot_attention_is_exact() -> None:
    """Where LayerNorm makes every variance 1 it is scale·√D·C·E[w²], which is 1 for xavier.

    ε lowers the first one: the embedding's variance is a hundred times larger.
    """
    scheme = schemes.get("xavier")
    config = configure(GPTConfig(8, 4, 256, 64, 1000, 0.0, False, "gelu"), scheme)
    first, *others = expect(config, scheme, *random_tokens(config, 1, 64, 0)).score_std
    block = Variances.of(config, scheme, 0)
    exact = config.attention_scale * math.sqrt(config.head_size * block.q * block.k) * 256
    assert exact == pytest.approx(1)
    assert first == pytest.approx(exact, rel=0.02)
    assert others == pytest.approx([exact] * 7, rel=1e-3)


@pytest.mark.numeric
@pytest.mark.parametrize("scheme", ["gpt2", "lecun"])
def test_dropout_makes_the_stream_as_much_larger_as_it_does_in_training(scheme: str) -> None:
    """Against forward passes in training mode over many draws of noise and weights, by depth."""
    config = GPTConfig(4, 4, 256, 32, 500, 0.3, False, "gelu")
    idx, targets = random_tokens(config, 1, 32, seed=0)
    expected = dropout_factors(config, schemes.get(scheme), idx, targets)
    models = [build(config, schemes.get(scheme), seed) for seed in range(8)]
    still = mean([stream_powers(model.eval(), idx, 1) for model in models])
    noisy = mean([stream_powers(model.train(), idx, 8) for model in models])
    measured = [math.sqrt(a / b) for a, b in zip(noisy, still, strict=True)]
    assert expected[0] == pytest.approx(1 / math.sqrt(0.7))
    assert expected == pytest.approx(measured, rel=0.025)
    assert max(expected) - expected[0] > 0.015  # more than the embedding's own factor


def stream_powers(model: GPT, idx: torch.Tensor, draws: int) -> list[float]:
    """Mean square of the stream at each depth over some draws of PyTorch's dropout."""
    total = [0.0] * (model.config.n_layer + 1)

    def probe(what: str, layer: int, x: torch.Tensor) -> None:
        if what in ("embed", "resid"):
            total[layer + 1] += float(x.square().mean()) / draws

    with torch.no_grad():
        for n in range(draws):
            torch.manual_seed(n)
            model(idx, None, probe)
    return total
