"""Everything around training works on a model of today's parts as on GPT-2."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numerics
import pytest
import torch
import toy_run
from toy_run import MODERN, losses, of_type, recipe

from nanogpt_cli.errors import UserError
from nanogpt_cli.init import study
from nanogpt_cli.init.inspect import measure
from nanogpt_cli.init.sources import Drawn
from nanogpt_cli.init.theory import expect, random_tokens
from nanogpt_cli.interop import source
from nanogpt_cli.machine import device, distributed, gpus, joining
from nanogpt_cli.model import accounting, homes
from nanogpt_cli.recipe import Optim
from nanogpt_cli.run import events
from nanogpt_cli.training import setup, spec
from nanogpt_cli.training.checkpoints import checkpoint, retention
from nanogpt_cli.training.forecasts import plan, roofline, traffic
from nanogpt_cli.training.trainer import Trainer

pytestmark = pytest.mark.numeric


def modern(**sections: dict[str, Any]) -> Any:
    model = MODERN | sections.pop("model", {})
    return recipe(model=model, **sections)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_micro_batches_agree_and_a_run_learns(tmp_path: Path, name: str) -> None:
    data = toy_run.data(tmp_path)
    found = []
    for size in (8, 2):
        trainer = Trainer(modern(train={"batch_size": size}, optim={"name": name}), data)
        found.append(losses(toy_run.run(trainer)))
    close = numerics.tolerance(128, max(found[0].values()))
    assert found[1] == pytest.approx(found[0], abs=close)
    assert found[0][12] < found[0][1] - 0.3


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_parts_agree_with_one_part(tmp_path: Path, dropout: float) -> None:
    data = toy_run.data(tmp_path)
    one, three = (
        setup.assemble(
            spec.resolve(
                modern(
                    model={"dropout": dropout},
                    train={"batch_size": 5, "tokens_per_step": 0, "parts": n},
                ),
                data,
            )
        )
        for n in (1, 3)
    )
    assert (one.n_parts, three.n_parts) == (1, 3)
    assert one.measure(4).loss == pytest.approx(three.measure(4).loss, rel=1e-6)
    for p, q in zip(one.model.parameters(), three.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7)


def test_optimizers_take_what_is_theirs(tmp_path: Path) -> None:
    """Muon takes the blocks' matrices, one each; gains and biases do not decay."""
    trainer = Trainer(modern(model={"bias": "qkv"}, optim={"name": "muon"}), toy_run.data(tmp_path))
    optimizers = trainer.stepper.optimizers
    taken = {}
    for member in optimizers.members:
        for group in member.param_groups:
            for parameter in group["params"]:
                options = (type(member).__name__, group["weight_decay"], group.get("split", 1))
                taken[optimizers.names[parameter]] = options
    block = "model.layers.1."
    for name in ("q", "k", "v", "o"):
        assert taken[f"{block}self_attn.{name}_proj.weight"] == ("Muon", 0.1, 1)
    for name in ("gate", "up", "down"):
        assert taken[f"{block}mlp.{name}_proj.weight"] == ("Muon", 0.1, 1)
    for name in ("self_attn.q_norm.weight", "self_attn.v_proj.bias", "input_layernorm.weight"):
        assert taken[block + name] == ("AdamW", 0.0, 1)
    assert taken["model.embed_tokens.weight"] == ("AdamW", 0.1, 1)


def test_statistics_are_complete_and_expected(tmp_path: Path) -> None:
    trainer = Trainer(modern(stats={"every": 4, "budget": 1.0}), toy_run.data(tmp_path))
    found = toy_run.run(trainer)
    plain = Trainer(recipe(stats={"every": 4, "budget": 1.0}), toy_run.data(tmp_path))
    theirs = toy_run.run(plain)
    ours, gpt2 = (of_type(f, events.Layers)[0].stats for f in (found, theirs))
    assert ours.keys() == gpt2.keys()
    assert all(len(row) == 2 for row in ours.values())
    started, of_gpt2 = (of_type(f, events.RunStarted)[0] for f in (found, theirs))
    # Where attention is not nearly uniform, nothing is expected of the first token's share.
    assert started.expected.keys() | {"attn_first"} == of_gpt2.expected.keys() | {"attn_first"}
    first = of_type(found, events.Layers)[0].stats
    # 16 channels scatter widely; the right formula is within a factor of 2.
    for name in ("resid_rms", "mlp_rms", "weight_rms"):
        assert first[name] == pytest.approx(started.expected[name], rel=1.0)


def test_statistics_of_attention_are_those_of_its_scores(tmp_path: Path) -> None:
    trainer = Trainer(modern(), toy_run.data(tmp_path))
    model, ids = trainer.model.eval(), trainer.collector.probe_ids
    found = trainer.collector.activations().complete()
    seen: dict[str, torch.Tensor] = {}
    for layer, block in enumerate(model.model.layers):
        block.self_attn.q_norm.register_forward_hook(
            lambda m, i, o, n=layer: seen.update({f"q{n}": o})
        )
        block.self_attn.k_norm.register_forward_hook(
            lambda m, i, o, n=layer: seen.update({f"k{n}": o})
        )
    with torch.no_grad():
        model(ids)
    D, T = 8, 16
    angles = torch.arange(T)[:, None] / 10_000 ** (torch.arange(0, D, 2) / D)
    turn = torch.polar(torch.ones(T, D // 2), angles.float())
    for layer in range(2):
        q, k = (
            torch.view_as_real(
                torch.view_as_complex(
                    torch.stack(seen[f"{w}{layer}"].chunk(2, -1), -1).contiguous()
                )
                * turn
            )
            for w in "qk"
        )  # pairs of channels as complex numbers; (B, heads, T, D/2, 2)
        scores = torch.einsum("bhtdc,bgsdc->bhts", q, k) / D**0.5  # one head of keys serves both
        visible = torch.ones(T, T).tril().bool()
        assert float(found["attn_logit_max"][layer]) == pytest.approx(
            float(scores[..., visible].max()), rel=1e-4
        )


def test_checkpoints_have_the_names_of_their_home(tmp_path: Path) -> None:
    run, data = toy_run.folder(tmp_path / "run"), toy_run.data(tmp_path)
    trainer = Trainer(modern(), data, run)
    toy_run.run(trainer)
    folder = retention.find(run, "last")
    names = checkpoint.tensor_shapes(folder / checkpoint.MODEL)
    assert "model.layers.1.self_attn.q_norm.weight" in names
    assert "model.layers.0.mlp.gate_proj.weight" in names
    assert not any(name.startswith("transformer.") or "lm_head" in name for name in names)
    assert checkpoint.load(folder).model.config == trainer.model.config
    assert homes.home(source.from_run(run).config) == "qwen3"
    ours_only = Trainer(recipe(model={"norm": "rms"}), data).model
    with pytest.raises(UserError, match='norm = "rms"'):
        source.from_model(ours_only, data.tokenizer)


def test_forecasts_follow_the_model() -> None:
    wanted = modern(model={"n_embd": 64, "n_layer": 3, "hidden": 144, "dropout": 0.1})
    config = spec.model_config(wanted, 50)
    passes, _ = roofline.step_parts(config, Optim(), gpus.find("H200"), 4)
    positions = 4 * config.block_size
    attention = 2 * config.n_layer * config.n_embd * (config.block_size + 1)
    forward = accounting.account(config).flops_forward - attention
    found = sum(part.flops for name, part in passes.items() if name != traffic.ATTENTION)
    assert found == pytest.approx(3 * positions * forward, rel=0.02)
    products = passes[traffic.ATTENTION_PRODUCTS].flops, passes[traffic.MLP_PRODUCTS].flops
    by_class = accounting.account(config).by_class
    of_attention = sum(by_class[kind] for kind in ("q", "k", "v", "attn_proj"))
    of_mlp = sum(by_class[kind] for kind in ("gate", "fc", "mlp_proj"))
    assert products == pytest.approx((6 * positions * of_attention, 6 * positions * of_mlp))
    needed = plan.memory(wanted, config, device.choose(wanted.train))
    assert needed.weights == 4 * accounting.account(config).parameters


@pytest.mark.parametrize("key", [{"norm": "rms"}, {"position": "rope"}, {"activation": "geglu"}])
def test_only_gpt2_is_streamed_and_theory_knows_all(key: dict[str, Any]) -> None:
    config, scheme = spec.model_config(recipe(model=key), 50), spec.scheme_of(recipe())
    idx, targets = random_tokens(config, 1, 8, seed=0)
    with pytest.raises(UserError, match=f"model.{next(iter(key))}"):
        measure(Drawn(config, scheme, 0), idx, targets)
    assert math.isfinite(expect(config, scheme, idx, targets).loss)
    assert study.shallow_growth(config, scheme) > 1


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_wrapped_steps_equal_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: str, precision: str
) -> None:
    data = toy_run.data(tmp_path)
    plain = setup.assemble(spec.resolve(modern(train={"precision": precision}), data))
    for index in range(2):
        expected = plain.step(index).loss
    monkeypatch.setenv("NANOGPT_JOIN_ALONE", "1")
    with joining.alone() as group:
        wanted = modern(train={"precision": precision, "parallel": parallel})
        wrapped = setup.assemble(spec.resolve(wanted, data, group=group))
        assert distributed.is_sharded(wrapped.model) == (parallel == "fsdp")
        for index in range(2):
            found = wrapped.step(index).loss
    # FSDP rounds the blocks' weights to bfloat16, 2^-9 each, and sums their products in float32.
    assert found == pytest.approx(expected, rel=1e-5 if precision == "fp32" else 1e-2)
