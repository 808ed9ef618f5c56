"""Whole runs on a simulated GPU: the code's ways for GPUs give what its ways for CPUs give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run
from simulated_cuda import GPU, GPUTensor, simulated

from nanogpt_cli.init.lanczos import lanczos
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.run import events
from nanogpt_cli.sampling.decode import Decoder
from nanogpt_cli.sampling.weights import Weights
from nanogpt_cli.training.trainer import Trainer

EPS = torch.finfo(torch.float32).eps
COMMON: dict[str, dict[str, Any]] = {
    "optim": {"name": "adamw", "ema": 0.9},
    "sample": {"every": 4, "max_new_tokens": 30, "temperature": 0.0},
    "stats": {"every": 2, "budget": 1.0},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "gpt2": {},
    "modern": {"model": toy_run.MODERN},
    "deterministic": {"train": {"deterministic": True}, "model": {"activation": "relu2"}},
}


def trainer(folder: Path, device: str, variant: str, **train_keys: Any) -> Trainer:
    sections = {name: dict(section) for name, section in COMMON.items()}
    for name, section in VARIANTS[variant].items():
        sections[name] = sections.get(name, {}) | section
    train = sections.get("train", {}) | {"device": device, "compile": False} | train_keys
    recipe = toy_run.recipe(**sections | {"train": train})
    return Trainer(recipe, toy_run.data(folder), toy_run.folder(folder / device))


def alike(first: Any, second: Any) -> bool:
    """Whether two values of events agree but for sums in another order."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(alike(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(alike, first, second))
    if isinstance(first, float) and isinstance(second, float):
        # Twelve steps, each with sums of a few hundred numbers.
        return first == pytest.approx(second, rel=2**10 * EPS, abs=2**8 * EPS, nan_ok=True)
    return bool(first == second)


@pytest.fixture
def determinism_ends(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.numeric
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("determinism_ends")
def test_a_run_on_the_gpu_is_the_run_on_the_cpu(tmp_path: Path, variant: str) -> None:
    """Losses, statistics, histograms, evaluations, checkpoints and samples."""
    expected = toy_run.run(trainer(tmp_path, "cpu", variant))
    with simulated():
        gpu = trainer(tmp_path, "cuda", variant)
        assert all(isinstance(p, GPUTensor) and p.device == GPU for p in gpu.model.parameters())
        found = toy_run.run(gpu)
    of_time = {"time", "seconds", "step_s", "tokens_per_s", "cost", "bytes"}
    for here, there in zip(expected[1:], found[1:], strict=True):
        assert type(here) is type(there)
        for name in set(here.__dataclass_fields__) - of_time:
            assert alike(getattr(here, name), getattr(there, name)), (here, name)


def test_a_step_waits_once_and_its_statistics_once(tmp_path: Path) -> None:
    with simulated() as gpu:
        waits: dict[tuple[str, int], int] = {}
        before = 0
        for event in trainer(tmp_path, "cuda", "gpt2").run():
            if isinstance(event, events.Step | events.Layers | events.Eval | events.Histograms):
                waits[event.type, event.step] = len(gpu.waits) - before
            before = len(gpu.waits)
    del waits["step", 1]  # after the rehearsal
    # An evaluation reads its sums and their spread.
    allowed = {"step": 1, "layers": 1, "eval": 2, "histograms": 1}
    assert len(waits) == 11 + 6 + 3 + 3
    assert all(count == allowed[kind] for (kind, _), count in waits.items())


@pytest.mark.parametrize("action", ["stop", "skip", "rollback"])
def test_what_is_not_finite_has_the_same_consequences(tmp_path: Path, action: str) -> None:
    def story(device: str) -> list[tuple[str, int]]:
        """Its events, when a weight becomes NaN after step 6."""
        run = trainer(tmp_path, device, "gpt2", on_nonfinite=action)
        told = []
        for event in run.run():
            told.append((event.type, getattr(event, "step", 0)))
            if told.count(("step", 6)) == 1 and told[-1] == ("step", 6):
                with torch.no_grad():
                    run.model.blocks[0].mlp.c_fc.weight[0, 0] = float("nan")
        return told

    on_cpu = story("cpu")
    with simulated():
        assert story("cuda") == on_cpu
    assert ("incident", 7) in on_cpu


@pytest.mark.numeric
def test_a_resumed_run_on_the_gpu_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    with simulated():
        through = toy_run.losses(toy_run.run(trainer(tmp_path / "a", "cuda", "gpt2")))
        first = trainer(tmp_path / "b", "cuda", "gpt2")
        toy_run.run(first, steps=4)
        folder = first.spec.folder
        assert folder is not None
        again = Trainer(
            first.recipe, first.spec.data, folder, checkpoint=folder.checkpoints / "step-000004"
        )
        later = toy_run.losses(toy_run.run(again))
    assert later == {step: loss for step, loss in through.items() if step > 4}


@pytest.mark.numeric
def test_a_captured_step_goes_on_as_the_eager_one_does() -> None:
    """Across the step at which it is captured."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(2, 2, 16, 16, 30, 0.0, True, "gelu")).eval()
    prompts, steps = [[1, 2, 3], [4, 5, 6]], range(3, 15)
    slow = Decoder(Weights.of(model), 2)
    expected = [slow.prefill([0, 1], prompts)]
    expected += [slow._step_many([0, 1], [n, 29 - n], [n, n], whole=True) for n in steps]
    with simulated():
        decoder = Decoder(Weights.of(model.to(GPU)), 2)
        found = [decoder.prefill([0, 1], prompts)]
        found += [decoder.step([0, 1], [n, 29 - n], [n, n]) for n in steps]
        assert decoder._replay is not None
        assert decoder._replay._graph is not None
        found = [logits.cpu() for logits in found]
    for here, there in zip(expected, found, strict=True):
        assert (here - there).abs().max() <= 2**8 * EPS * here.abs().max()


def test_the_lanczos_method_waits_for_scalar_products_not_for_their_parts() -> None:
    with simulated() as gpu:
        waits = []
        for parts in (1, 5):
            before = len(gpu.waits)
            lanczos(lambda v: [2 * x for x in v], [torch.ones(3, device=GPU)] * parts, 2, 0)
            waits.append(len(gpu.waits) - before)
    # The first direction is drawn on the host, a copy for each part.
    assert waits[1] - waits[0] == 4
