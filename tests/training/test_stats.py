"""Statistics against naive computations, and the sampler's budget."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_run
from toy_run import of_type, recipe

from nanogpt_cli.model.parameters import layer_of
from nanogpt_cli.run import events
from nanogpt_cli.training.activations import attention_statistics, kurtosis
from nanogpt_cli.training.stats import Collector
from nanogpt_cli.training.trainer import Trainer


def matrices(trainer: Trainer, layer: int) -> list[torch.Tensor]:
    return [
        p.detach().clone()
        for name, p in trainer.model.named_parameters()
        if layer_of(name) == layer and p.dim() == 2
    ]


def test_weights_updates_and_gradients_are_the_true_ones(tmp_path: Path) -> None:
    wanted = recipe(stats={"every": 1, "budget": 1.0}, optim={"name": "muon"})
    trainer = Trainer(wanted, toy_run.data(tmp_path))
    before = [matrices(trainer, layer) for layer in range(2)]
    grads = {}
    apply = trainer.stepper.apply

    def watched(measured: object) -> None:
        grads.update({n: p.grad.norm() for n, p in trainer.model.named_parameters()})
        apply(measured)  # type: ignore[arg-type]

    trainer.stepper.apply = watched  # type: ignore[method-assign]
    found = next(e for e in trainer.run() if isinstance(e, events.Layers))
    for layer in range(2):
        after = matrices(trainer, layer)
        old = torch.cat([m.flatten() for m in before[layer]])
        new = torch.cat([m.flatten() for m in after])
        ratio = math.log10(float((new - old).norm() / new.norm()))
        assert found.stats["update_ratio"][layer] == pytest.approx(ratio, abs=1e-4)
        assert found.stats["weight_rms"][layer] == pytest.approx(
            float(new.square().mean().sqrt()), rel=1e-4
        )
        mine = torch.stack([g for n, g in grads.items() if layer_of(n) == layer])
        assert found.stats["grad_norm"][layer] == pytest.approx(float(mine.norm()), rel=1e-4)


def test_activations_equal_those_of_hooks(tmp_path: Path) -> None:
    trainer = Trainer(recipe(model={"activation": "relu2"}), toy_run.data(tmp_path))
    model, ids = trainer.model.eval(), trainer.collector.probe_ids
    found = {
        k: [float(v) for v in row] for k, row in trainer.collector.activations().complete().items()
    }
    seen: dict[str, torch.Tensor] = {}
    for layer, block in enumerate(model.transformer.h):
        block.register_forward_hook(lambda m, i, o, n=layer: seen.update({f"resid{n}": o}))
        block.attn.register_forward_hook(lambda m, i, o, n=layer: seen.update({f"attn{n}": o}))
        block.mlp.c_fc.register_forward_hook(lambda m, i, o, n=layer: seen.update({f"pre{n}": o}))
        block.attn.c_attn.register_forward_hook(
            lambda m, i, o, n=layer: seen.update({f"qkv{n}": o})
        )
    with torch.no_grad():
        model(ids)
    for layer in range(2):
        for name, key in (("resid_rms", "resid"), ("attn_rms", "attn")):
            value = float(seen[f"{key}{layer}"].square().mean().sqrt())
            assert found[name][layer] == pytest.approx(value, rel=1e-5)
        pre = seen[f"pre{layer}"]
        assert found["preact_std"][layer] == pytest.approx(float(pre.std()), rel=1e-5)
        hidden = pre.relu().square()
        silent = hidden.amax((0, 1)) < 1e-2 * hidden.square().mean().sqrt()
        assert found["dead"][layer] == pytest.approx(float(silent.float().mean()))
        q, k, _ = seen[f"qkv{layer}"].split(16, dim=2)
        q, k = (t.view(2, 16, 2, 8).transpose(1, 2) for t in (q, k))
        entropies, first = [], []
        for t in range(1, 16):
            p = (q[:, :, t : t + 1] @ k[:, :, : t + 1].mT / math.sqrt(8)).softmax(-1)
            entropies.append(-(p * p.log()).sum(-1).mean((0, 2)) / math.log(t + 1))
            first.append(p[..., 0].mean())
        heads = torch.stack(entropies).mean(0)
        for name, wanted in (
            ("attn_entropy", heads.mean()),
            ("attn_entropy_min", heads.min()),
            ("attn_first", torch.stack(first).mean()),
        ):
            assert found[name][layer] == pytest.approx(float(wanted), rel=1e-4)


def test_attention_statistics_by_hand() -> None:
    """Two heads of one query over four positions, of which it sees three."""
    scores = torch.tensor([[[[0.0, 0.0, 0.0, 9.0]], [[30.0, 0.0, 0.0, 9.0]]]])  # (1, 2, 1, 4)
    found = attention_statistics(scores, torch.tensor([[True, True, True, False]]))
    assert float(found["attn_entropy"]) == pytest.approx(0.5, abs=1e-6)  # uniform, and one token
    assert float(found["attn_entropy_min"]) == pytest.approx(0.0, abs=1e-6)
    assert float(found["attn_first"]) == pytest.approx((1 / 3 + 1) / 2, rel=1e-6)
    assert float(found["attn_logit_max"]) == 30.0
    assert float(found["attn_score_std"]) == pytest.approx(math.sqrt(150), rel=1e-6)


def test_a_query_without_a_choice_says_nothing() -> None:
    found = attention_statistics(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert all(math.isnan(float(found[name])) for name in ("attn_entropy", "attn_first"))


@pytest.mark.numeric
def test_kurtosis_is_that_of_each_position_s_channels() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)
    x[..., 7] += 20  # a channel that all positions share
    centred = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
    wanted = ((centred**4).mean(-1) / (centred**2).mean(-1) ** 2).mean()
    assert float(kurtosis(torch.from_numpy(x))) == pytest.approx(wanted, rel=1e-5)
    alone = torch.zeros(1, 1, 100)
    alone[..., 3] = 5.0
    share = 1 / 100
    wanted = (share**3 + (1 - share) ** 3) / (share * (1 - share))  # of a biased coin
    assert float(kurtosis(alone)) == pytest.approx(wanted, rel=1e-5)


def test_the_interval_grows_until_the_budget_is_kept(tmp_path: Path) -> None:
    trainer = Trainer(recipe(), toy_run.data(tmp_path))
    now = iter(x * 0.5 for x in range(10_000))  # each measured span lasts half a second
    collector = Collector(
        trainer.model,
        trainer.collector.probe_ids,
        trainer.stepper.device,
        every=0,
        budget=0.01,
        clock=lambda: next(now),
    )
    trainer.stepper.measure(0)
    assert collector.due(0)
    collector.before_update()
    collector.after_update(0, trainer.stepper.grad_norms(), step_seconds=1.0)
    assert collector.every == 100  # two spans of half a second, 1 % of a step of one second
    assert collector.cost == pytest.approx(0.01)
    assert not collector.due(99)
    assert collector.due(100)


def test_no_budget_no_statistics_and_histograms_only_at_evaluations(tmp_path: Path) -> None:
    data = toy_run.data(tmp_path)
    assert not of_type(toy_run.run(Trainer(recipe(), data)), events.Layers)
    wanted = recipe(stats={"every": 5, "budget": 1.0})
    told = toy_run.run(Trainer(wanted, data))
    assert [e.step for e in of_type(told, events.Layers)] == [1, 6, 11]
    drawn = of_type(told, events.Histograms)
    assert [e.step for e in drawn] == [4, 8, 12]
    counts = drawn[0].histograms["weights"]["counts"]
    assert [sum(row) for row in counts] == [12 * 16 * 16] * 2


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_a_layer_that_is_dead_as_a_whole_is_counted(tmp_path: Path, activation: str) -> None:
    """No unit is small beside the others there, so the layer's own size is no measure."""
    keys = {"activation": activation, "bias": True}
    trainer = Trainer(recipe(model=keys), toy_run.data(tmp_path))
    with torch.no_grad():
        trainer.model.transformer.h[1].mlp.c_fc.bias.fill_(-40.0)
    found = trainer.collector.activations().complete()["dead"]
    assert float(found[0]) < 0.1
    assert float(found[1]) == 1.0
