from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nanogpt_cli import schemes
from nanogpt_cli.init import drawing, probes, sources
from nanogpt_cli.init.drawing import build, configure
from nanogpt_cli.init.expected import expected_tensors
from nanogpt_cli.init.inspect import measure
from nanogpt_cli.init.probes import attention_statistics, gradient_norm
from nanogpt_cli.init.signals import Signals, grid
from nanogpt_cli.init.sources import Drawn, Stored
from nanogpt_cli.init.tensor_stats import ks_distance, kurtosis, measure_tensor
from nanogpt_cli.init.theory import random_tokens
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.schemes.laws import Law

CONFIG = GPTConfig(3, 4, 64, 48, 5000, 0.0, True, "gelu")  # wte spans two chunks of rows


def whole(model: GPT, idx: Tensor, targets: Tensor) -> tuple[dict[str, list[float]], float]:
    """The slow twin: the whole model, ordinary autograd, statistics written out plainly."""
    found: dict[str, list[float]] = {}
    streams: list[Tensor] = []

    def probe(what: str, _layer: int, x: Tensor) -> None:
        found.setdefault(what, []).append(float(x.detach().double().square().mean().sqrt()))
        if what in ("embed", "resid"):
            x.retain_grad()
            streams.append(x)

    logits, loss = model(idx, targets, probe)
    assert loss is not None
    loss.backward()
    found["any"] = [float((logits.logsumexp(-1) - logits.mean(-1)).mean().detach())]
    found["stream"] = found.pop("embed") + found.pop("resid")
    found["grad"] = [
        float(x.grad.double().square().mean().sqrt()) for x in streams if x.grad is not None
    ]
    for name, leaf in (("c_attn", "attn.c_attn"), ("attn_proj", "attn.c_proj"),
                       ("fc", "mlp.c_fc"), ("mlp_proj", "mlp.c_proj")):  # fmt: skip
        grads = [block.get_submodule(leaf).weight.grad for block in model.transformer.h]
        found[name] = [float(g.norm()) for g in grads if isinstance(g, Tensor)]
    return found, float(loss.detach())


@pytest.mark.parametrize("name", ["gpt2", "completep", "pytorch", "mitchell"])
@pytest.mark.parametrize("change", [{}, {"tied": False}, {"activation": "swiglu", "bias": False}])
def test_streamed_equals_whole(name: str, change: dict[str, object]) -> None:
    scheme = schemes.get(name)
    config = configure(replace(CONFIG, **change), scheme)  # type: ignore[arg-type]
    idx, targets = random_tokens(config, 2, 40, seed=0)
    expected, loss = whole(build(config, scheme, seed=3), idx, targets)
    found = measure(Drawn(config, scheme, 3), idx, targets).signals
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert [found.loss_any] == pytest.approx(expected["any"], rel=1e-6)
    close = {"rel": 1e-6}
    assert found.stream_rms == pytest.approx(expected["stream"], **close)
    assert found.attn_rms == pytest.approx(expected["attn"], **close)
    assert found.mlp_rms == pytest.approx(expected["mlp"], **close)
    assert found.preact_std == pytest.approx(expected["preact"], **close)
    assert found.grad_rms == pytest.approx(expected["grad"], **close)
    for key in ("c_attn", "attn_proj", "fc", "mlp_proj"):
        assert found.weight_grad[key] == pytest.approx(expected[key], rel=1e-5), key


def test_a_stored_model_measures_like_the_drawn_one() -> None:
    scheme = schemes.get("gpt2")
    idx, targets = random_tokens(CONFIG, 1, 32, seed=0)
    tensors = dict(build(CONFIG, scheme, 1).named_parameters())
    stored = measure(Stored(CONFIG, tensors.__getitem__, scheme), idx, targets)
    drawn = measure(Drawn(CONFIG, scheme, 1), idx, targets)
    assert stored.signals == drawn.signals
    assert stored.tensors == drawn.tensors


def test_statistics_of_a_chunked_table_are_those_of_the_table() -> None:
    scheme = schemes.get("gpt2")
    idx, targets = random_tokens(CONFIG, 1, 8, seed=0)
    found = measure(Drawn(CONFIG, scheme, 0), idx, targets, backward=False).tensors[0]
    wte = build(CONFIG, scheme, 0).transformer.wte.weight.detach().double()
    assert found.key == "transformer.wte.weight"
    assert found.std == pytest.approx(float(wte.std(correction=0)), rel=1e-6)
    assert found.mean == pytest.approx(float(wte.mean()), abs=1e-9)
    assert (found.minimum, found.maximum) == (float(wte.min()), float(wte.max()))
    assert found.kurtosis == pytest.approx(3.0, abs=0.1)
    assert found.follows


def test_rows_kept_for_the_head_are_those_that_would_be_drawn_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheme = schemes.get("gpt2")
    idx, targets = random_tokens(CONFIG, 1, 8, seed=0)
    kept = measure(Drawn(CONFIG, scheme, 0), idx, targets)
    asked: list[int] = []
    rows = Drawn.rows

    def watched(source: Drawn, spec: drawing.MatrixSpec, start: int, out: Tensor) -> Tensor:
        asked.extend([start] * (spec.tensor_class == "wte"))
        return rows(source, spec, start, out)

    monkeypatch.setattr(Drawn, "rows", watched)
    monkeypatch.setattr(sources, "_KEEP", 4 * 4096 * CONFIG.n_embd)
    assert measure(Drawn(CONFIG, scheme, 0), idx, targets) == kept
    assert asked == [0, 4096, 4096, 4096]  # embedding, head, gradient of the head


def test_a_sample_outlives_the_buffer_it_was_taken_from() -> None:
    config = GPTConfig(1, 1, 4, 8, 5000, 0.0, False, "gelu")  # few enough values to keep them all
    scheme = schemes.get("pytorch-embtie")
    found = measure(Drawn(config, scheme, 0), *random_tokens(config, 1, 8, seed=0)).tensors[0]
    wte = build(config, scheme, 0).transformer.wte.weight.detach()
    assert found.sampled == wte.numel()
    assert found == measure_tensor(wte, found.key, "wte", -1, found.law, found.expected_std)


@pytest.mark.parametrize(
    "law", [Law("normal", 0.02), Law("uniform", 0.1), Law("truncated", 0.02, 2.0)]
)
def test_distance_from_a_law_written_out(law: Law) -> None:
    """Sorted values against the law's distribution function, and against a law they miss."""
    x = torch.empty(20_000)
    rng = torch.Generator().manual_seed(1)
    bound = 3**0.5 * law.scale
    if law.kind == "uniform":
        x.uniform_(-bound, bound, generator=rng)
    else:
        x.normal_(0, law.scale, generator=rng)
        x = x[x.abs() < law.cut * law.scale]

    def exact(law: Law) -> float:
        u = x.double().sort().values / law.scale
        cdf = (u / 3**0.5 + 1) / 2 if law.kind == "uniform" else torch.special.ndtr(u)
        if law.kind == "truncated":
            tail = float(torch.special.ndtr(torch.tensor(-law.cut).double()))
            cdf = (cdf - tail) / (1 - 2 * tail)
        steps = torch.arange(len(x) + 1).double() / len(x)
        cdf = cdf.clamp(0, 1)
        return float(torch.maximum(steps[1:] - cdf, cdf - steps[:-1]).max())

    for asked in (law, Law("normal", 0.03), Law("uniform", 0.02)):
        assert ks_distance(x, asked) == pytest.approx(exact(asked), abs=1 / 4096)
    assert kurtosis(x) == pytest.approx(law.kurtosis, abs=0.1)


def test_every_matrix_is_reported_once() -> None:
    scheme = schemes.get("gpt2")
    idx, targets = random_tokens(CONFIG, 1, 8, seed=0)
    keys = [t.key for t in measure(Drawn(CONFIG, scheme, 0), idx, targets).tensors]
    assert len(keys) == len(set(keys)) == 2 + 3 * 14 + 2
    assert "transformer.h.2.attn.c_attn.weight/k" in keys
    declared = expected_tensors(CONFIG, scheme)
    assert sorted(t.key for t in declared) == sorted(keys)
    assert {t.key: (t.law, t.expected_std) for t in declared} == {
        t.key: (t.law, t.expected_std)
        for t in measure(Drawn(CONFIG, scheme, 0), idx, targets).tensors
    }


@pytest.mark.parametrize("strip", [64, 4])
def test_attention_statistics_written_out(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_STRIP", strip)
    q, k = torch.randn(2, 2, 3, 6, 4, generator=torch.Generator().manual_seed(0)) * 2
    squares, entropies = [], []
    for b in range(2):
        for h in range(3):
            for t in range(6):
                scores = 0.5 * (k[b, h, : t + 1] @ q[b, h, t])
                squares += scores.square().tolist()
                p = scores.softmax(0)
                if t:
                    entropies.append(float(-(p * p.log()).sum()) / math.log(t + 1))
    score, entropy = attention_statistics(q, k, 0.5)
    assert score == pytest.approx(math.sqrt(sum(squares) / len(squares)), rel=1e-5)
    assert entropy == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)


def test_gram_trick() -> None:
    g, x = torch.randn(2, 7, 5), torch.randn(2, 7, 9)
    G, X = g.reshape(14, 5), x.reshape(14, 9)
    assert gradient_norm(g, x) == pytest.approx(float((G.T @ X).norm()), rel=1e-5)


def test_silent_units_of_relu_and_histograms() -> None:
    scheme = schemes.get("gpt2")
    config = replace(CONFIG, activation="relu", bias=False)
    idx, targets = random_tokens(config, 1, 3, seed=0)
    found = measure(Drawn(config, scheme, 0), idx, targets, backward=False, histograms=True)
    # Three nearly independent tokens: a unit is negative on all of them with probability 1/8.
    assert found.signals.near_zero[0] == pytest.approx(0.125, abs=0.06)
    counts = found.histograms["preact"][0].counts
    assert sum(counts) == pytest.approx(3 * 256, abs=2)
    assert found.histograms["resid"][2].rms == pytest.approx(found.signals.stream_rms[3])


def test_progress_counts_both_passes() -> None:
    seen: list[tuple[int, int]] = []
    idx, targets = random_tokens(CONFIG, 1, 8, seed=0)
    source = Drawn(CONFIG, schemes.get("gpt2"), 0)
    measure(source, idx, targets, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]


def test_a_failing_source_ends_the_measurement() -> None:
    def read(name: str) -> Tensor:
        raise KeyError(name)

    idx, targets = random_tokens(CONFIG, 1, 8, seed=0)
    with pytest.raises(KeyError, match="wte"):
        measure(Stored(CONFIG, read), idx, targets)


def test_thread_count_is_restored() -> None:
    before = torch.get_num_threads()
    idx, targets = random_tokens(CONFIG, 1, 8, seed=0)
    measure(Drawn(CONFIG, schemes.get("gpt2"), 0), idx, targets)
    assert torch.get_num_threads() == before


def test_transformers_hidden_states_agree() -> None:
    """GPT-2 of transformers with the same weights, its own output of every hidden state."""
    transformers = pytest.importorskip("transformers")
    scheme = schemes.get("small-wang")
    config = replace(CONFIG, activation="gelu_tanh", vocab_size=300)
    model = build(config, scheme, 0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=3, n_head=4, n_embd=64, n_positions=48, vocab_size=300,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, value in model.named_parameters():
            target = theirs.get_parameter(name)
            conv = not isinstance(theirs.get_submodule(name.rpartition(".")[0]),
                                  nn.Embedding | nn.LayerNorm)  # fmt: skip
            target.copy_(value.T if conv and value.dim() == 2 else value)
    idx, targets = random_tokens(config, 2, 32, seed=0)
    with torch.no_grad():
        states = theirs(idx, output_hidden_states=True).hidden_states
    found = measure(Drawn(config, scheme, 0), idx, targets, backward=False).signals
    expected = [float(x.square().mean().sqrt()) for x in states[:-1]]  # the last one is normed
    assert found.stream_rms[:3] == pytest.approx(expected, rel=1e-5)


def test_growth_of_a_silent_embedding_is_infinite() -> None:
    assert Signals(stream_rms=[0.0, 1.0]).growth == math.inf


@pytest.mark.parametrize("length", [1, 2, 5, 13, 14, 49, 1001])
def test_grid_shows_both_ends_and_the_first_block(length: int) -> None:
    shown = grid(length, 13)
    assert len(shown) <= 13
    assert {0, min(1, length - 1), length - 1} <= set(shown)
    assert shown == sorted(set(shown))
