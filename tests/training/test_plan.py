from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run
from toy_run import recipe

from nanogpt_cli import recipe as recipes
from nanogpt_cli.machine import device
from nanogpt_cli.model import accounting, loss
from nanogpt_cli.model.dropout import Noise
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.training import spec
from nanogpt_cli.training.forecasts import activations, plan
from nanogpt_cli.training.forecasts.activations import activation_bytes
from nanogpt_cli.training.trainer import Trainer

CPU = device.choose(recipes.Train(device="cpu", precision="fp32"))


def kept_for_backward(config: GPTConfig, batch: int) -> int:
    """The same count on real tensors of the real device."""
    model = GPT(config).train()
    own = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros(batch, config.block_size, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(ids, ids, noise=Noise(range(batch)))
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)


@pytest.mark.parametrize("activation", ["gelu", "relu2", "swiglu"])
def test_activations_without_memory_equal_those_with(activation: str) -> None:
    config = spec.model_config(recipe(model={"activation": activation, "dropout": 0.1}), 50)
    for batch in (1, 2, 5):
        assert activation_bytes(config, batch, CPU) == kept_for_backward(config, batch)


@pytest.mark.parametrize("optim", [{}, {"name": "muon"}, {"ema": 0.9}])
def test_state_is_counted_to_the_byte(tmp_path: Path, optim: dict[str, Any]) -> None:
    trainer = Trainer(recipe(optim=optim), toy_run.data(tmp_path))
    toy_run.run(trainer, steps=1)
    needed = plan.memory(trainer.recipe, trainer.model.config, CPU)
    assert needed.weights == 4 * trainer.model.n_parameters()
    moments = [t for t in trainer.stepper.optimizers.tensors().values() if t.dim()]
    averages = trainer.stepper.average.values.values()
    assert needed.moments == sum(t.nbytes for t in [*moments, *averages])


def test_forecast_adds_up(tmp_path: Path) -> None:
    wanted = recipe(train={"max_steps": 100})
    found = plan.forecast(
        wanted, 27, 20_000, CPU, flops_per_second=1e9, folder=tmp_path / "not" / "yet"
    )
    assert found.tokens == 100 * 128
    assert found.epochs == pytest.approx(0.64)
    assert found.flops == pytest.approx(found.flops_per_token * 12_800)
    assert found.seconds == pytest.approx(found.flops / 1e9)
    assert found.fits
    assert found.largest_micro_batch == 8  # all slots of a step


def test_the_largest_micro_batch_divides_the_step_and_fits() -> None:
    wanted = recipe(train={"tokens_per_step": 16 * 96, "batch_size": 4})
    config = spec.model_config(wanted, 50)
    sizes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96]
    peaks = {s: plan.memory(wanted, config, CPU, micro_batch=s).peak for s in sizes}
    room = (peaks[24] + peaks[32]) // 2
    assert plan.largest_micro_batch(wanted, config, CPU, room) == 24
    assert plan.largest_micro_batch(wanted, config, CPU, peaks[1] // 2) == 0


def test_what_cannot_fit_is_refused() -> None:
    found = plan.forecast(recipe(), 27, 20_000, CPU)
    assert not replace(found, available=found.memory.peak - 1).fits
    assert not replace(found, disk_free=found.disk_bytes - 1).fits


def test_splitting_over_processes_divides_the_state() -> None:
    wanted = recipe(train={"parallel": "fsdp"})
    config = spec.model_config(wanted, 50)
    one, two = (plan.memory(wanted, config, CPU, processes=n) for n in (1, 2))
    assert two.weights == one.weights // 2
    assert two.moments == one.moments // 2
    assert two.activations == one.activations


def test_speed_counts_the_flops_of_each_pass() -> None:
    config = spec.model_config(recipe(), 50)
    ticks = iter(range(1000))
    found = plan.speed(recipe(), config, CPU, seconds=4.0, clock=lambda: float(next(ticks)))
    per_token = accounting.training_flops(config)
    tokens = 4 * 16
    # Clock: start at 0, asked after passes 2, 3, 4 (1, 2, 3, 4 s), and once more for the rate.
    assert found == pytest.approx(per_token * tokens * 5 / 5.0, rel=0.3)


@pytest.mark.parametrize("tied", [True, False])
def test_an_untied_model_looks_its_embedding_up_for_nothing(tied: bool) -> None:
    config = replace(spec.model_config(recipe(), 50), tied=tied)
    model = GPT(config)
    matrices = model.n_parameters(embedding=False) + 50 * config.n_embd
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    assert accounting.training_flops(config) == 6 * matrices + attention
    assert accounting.account(config).flops_training == accounting.training_flops(config)


def test_blocks_beyond_the_second_are_counted_without_tracing_them() -> None:
    config = replace(spec.model_config(recipe(), 50), n_layer=5, dropout=0.1)
    for size in (1, 3):
        assert activation_bytes(config, size, CPU) == activations._traced(config, size, CPU)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_sequences_are_counted_without_tracing_every_piece_of_the_head(
    dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(spec.model_config(recipe(), 51), n_layer=1, dropout=dropout)
    monkeypatch.setitem(loss._AT_ONCE, "cpu", 3 * config.block_size * config.vocab_size)
    traced = {size: activations._traced(config, size, CPU) for size in (1, 2, 3, 4, 5, 6, 9)}
    monkeypatch.setattr(activations, "_traced", lambda _, size, __: traced[size])
    for size in (1, 2, 3, 4, 5, 6, 9):
        assert activation_bytes(config, size, CPU) == traced[size]
    del traced[9]  # five sequences say what nine need
    assert activation_bytes(config, 9, CPU) > traced[6]
