"""What a GPU asks of the code, checked without one.

* Nothing waits for the device on the way: a tensor on PyTorch's ``meta`` device has no values, so
  whatever needs one on the host (``item``, ``tolist``, ``nonzero``, a boolean index) raises.
* ``train.deterministic`` refuses operations without a deterministic form on CUDA: a run on a CPU
  uses none of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nanogpt_cli import recipe as recipes
from nanogpt_cli.machine import device as devices
from nanogpt_cli.machine import distributed
from nanogpt_cli.machine.device import Device
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.run import events
from nanogpt_cli.sampling.decode import Decoder
from nanogpt_cli.sampling.weights import Weights
from nanogpt_cli.training import histograms, setup, stats
from nanogpt_cli.training.activations import Activations
from nanogpt_cli.training.batches import Windows
from nanogpt_cli.training.optim import Optimizers
from nanogpt_cli.training.optimizers import adamw, muon
from nanogpt_cli.training.setup import assemble, describe
from nanogpt_cli.training.spec import RunSpec, resolve, scheme_of
from nanogpt_cli.training.stats import Collector
from nanogpt_cli.training.stepper import Measured, Stepper
from nanogpt_cli.training.trainer import Trainer

META = Device(torch.device("meta"), "fp32", False, "meta", None, ())
ALL = {"optim": {"name": "muon", "ema": 0.9}, "model": {"activation": "relu2"}}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    return resolve(toy_run.recipe(**ALL), toy_run.data(tmp_path_factory.mktemp("meta")))


@pytest.fixture
def stepper(spec: RunSpec) -> Stepper:
    """Of a model without values, which has made one step; Muon, AdamW and averages."""
    model = GPT(spec.config).to("meta").train()
    made = Stepper(
        model,
        model.loss,
        Optimizers(
            model, spec.recipe.optim, scheme_of(spec.recipe), max_steps=9, muon_dtype=torch.bfloat16
        ),
        Windows(0, len(spec.data.train), spec.config.block_size, 8, "random"),
        spec.data.train,
        META,
        micro_batch=4,
        grad_clip=1.0,
        ema=spec.recipe.optim.ema,
    )
    made._accumulate(0)
    made.apply(Measured(0, 0.1, 1.0, 2.0, clipped=True))
    return made


@pytest.fixture
def collector(stepper: Stepper) -> Collector:
    ids = torch.zeros(2, stepper.model.config.block_size, dtype=torch.int64, device="meta")
    return Collector(stepper.model, ids, META, every=1, budget=1.0)


def nothing_is_copied(patch: pytest.MonkeyPatch) -> None:
    """A list that becomes a tensor of the device is a copy that waits for it, unseen by meta."""

    def copied(*_: object, **__: object) -> None:
        raise AssertionError("copies a list to the device")

    patch.setattr(torch, "tensor", copied)
    patch.setattr(torch, "as_tensor", copied)


def test_a_step_moves_its_loss_and_norm_and_waits_for_nothing_else(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {type(member) for member in stepper.optimizers.members}
    assert kinds == {adamw.AdamW, muon.Muon}
    assert stepper.average.values
    with pytest.raises(RuntimeError, match="meta"):
        stepper.measure(1)  # the transfer of loss and norm, which comes last
    moved: list[tuple[int, ...]] = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: moved.append(x.shape) or [1.0, 2.0])
    nothing_is_copied(monkeypatch)
    stepper.apply(stepper.measure(1))
    assert moved == [(2,)]


def test_statistics_of_a_step_are_moved_once(
    stepper: Stepper, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[dict[str, Any]] = []
    monkeypatch.setattr(stats, "_to_host", lambda columns: moved.append(dict(columns)) or {})
    stepper._accumulate(1)
    norms = distributed.norms(stepper._grads(), distributed.Group())
    by_name = dict(zip(dict(stepper.model.named_parameters()), norms, strict=True))
    nothing_is_copied(monkeypatch)
    collector.before_update()
    stepper.apply(Measured(1, 0.1, 1.0, 2.0, clipped=True))
    collector.after_update(1, by_name, step_seconds=1.0)
    (columns,) = moved
    assert columns.keys() == stats.NAMES.keys()
    for column in columns.values():
        assert {value.device.type for value in column} == {"meta"}


def test_histograms_are_moved_once(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[Tensor] = []
    table = histograms._table

    def kept(rows: Any) -> Tensor:
        tables.append(table(rows))
        return tables[-1]

    monkeypatch.setattr(histograms, "_table", kept)
    nothing_is_copied(monkeypatch)
    with pytest.raises(NotImplementedError, match="meta"):  # the transfer, after all of them
        collector.histograms()
    assert [t.shape for t in tables] == [(3, histograms.BINS)] * 3


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_prefill_and_the_fixed_step_wait_for_nothing(activation: str) -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig(2, 2, 16, 8, 30, 0.0, True, activation))
    decoder = Decoder(Weights.of(model), 3)
    assert decoder.prefill([0, 1, 2], [[1, 2], [3, 4], [1, 2]]).shape == (3, 30)
    tokens = torch.zeros(3, dtype=torch.int64, device="meta")
    with torch.inference_mode():
        assert decoder._step_fixed(tokens, tokens).shape == (3, 30)


@pytest.mark.numeric
def test_attention_statistics_are_those_of_the_visible_logits() -> None:
    """Against selecting them; T on both sides of the number of queries that are watched."""
    cpu = devices.choose(recipes.Train(device="cpu", precision="fp32"))
    for T in (1, 5, 40):
        model = GPT(GPTConfig(1, 2, 16, T, 30, 0.0, True, "gelu"))
        seen = Activations(model, cpu)
        q, k = torch.randn(2, 3, 2, T, 8, generator=torch.Generator().manual_seed(T)) * 3
        seen("q", 0, q)
        seen("k", 0, k)
        rows = min(16, T)
        logits = (q[:, :, -rows:] @ k.mT) * seen.scale
        visible = logits.masked_select(torch.ones(rows, T, dtype=torch.bool).tril(T - rows))
        found = {name: float(column[0]) for name, column in seen.complete().items()}
        assert found["attn_logit_max"] == float(visible.max())
        wanted = float(visible.double().std()) if len(visible) > 1 else float("nan")
        # Means of n numbers err by n ulps of their magnitude; the mean's own error is squared.
        rel = len(visible) * torch.finfo(torch.float32).eps
        assert found["attn_score_std"] == pytest.approx(wanted, rel=rel, nan_ok=True)


@pytest.fixture
def determinism_ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)


# Operations that raise on CUDA under torch.use_deterministic_algorithms, by their names in ATen:
# the list in that function's documentation (PyTorch 2.13), forms that raise for floating-point
# numbers or weights only included. Loss functions of one dimension have deterministic kernels.
REFUSED = {
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "avg_pool3d_backward", "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d", "nll_loss2d_forward",
    "nll_loss2d_backward", "_ctc_loss_backward", "_embedding_bag", "reflection_pad1d_backward",
    "reflection_pad2d_backward", "reflection_pad3d_backward", "upsample_linear1d_backward",
    "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward",
    "put", "put_", "histc", "bincount", "median", "nanmedian", "kthvalue", "cumsum", "cumsum_",
    "scatter_reduce", "scatter_reduce_",
}  # fmt: skip


class Recorded(TorchDispatchMode):
    """Which operations run inside, and which of them CUDA would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.refused: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.names.add(name)
        if name in REFUSED and not self._allowed(name, args):
            self.refused.add(name)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _allowed(name: str, args: tuple[Any, ...]) -> bool:
        if name == "bincount":  # on a CPU only, see training/histograms.py
            return len(args) < 2 or args[1] is None
        return name.startswith("cumsum") and not args[0].is_floating_point()


@pytest.mark.parametrize(
    ("work", "refused"),
    [
        (lambda x: torch.histc(x, 4), {"histc"}),
        (lambda x: x.cumsum(0), {"cumsum"}),
        (lambda x: x.int().cumsum(0), set()),
        (lambda x: torch.bincount(x.int(), x), {"bincount"}),
        (lambda x: x.median(0), {"median"}),
    ],
)
def test_the_list_of_refused_operations_is_looked_at(
    work: Callable[[Tensor], object], refused: set[str]
) -> None:
    with Recorded() as seen:
        work(torch.ones(3))
    assert seen.refused == refused


def test_a_deterministic_run_uses_no_operation_that_cuda_refuses(
    tmp_path: Path, determinism_ends: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "expected_stats", lambda *_: {})  # theory stays on the host
    wanted = toy_run.recipe(
        train={"deterministic": True, "max_steps": 4, "eval_every": 2, "checkpoint_every": 2},
        stats={"every": 2, "budget": 1.0},
        sample={"max_new_tokens": 3},
        optim={"name": "muon", "ema": 0.9},
        model={"dropout": 0.1, "activation": "swiglu", "bias": True},
    )
    with Recorded() as seen:
        trainer = Trainer(wanted, toy_run.data(tmp_path), toy_run.folder(tmp_path / "run"))
        told = toy_run.run(trainer)
        decoder = Decoder(Weights.of(trainer.model), 2)  # sampling as on a GPU
        decoder.prefill([0, 1], [[1, 2], [1, 3]])
        with torch.inference_mode():
            decoder._step_fixed(torch.tensor([1, 2]), torch.tensor([2, 2]))
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    for kind in (events.Layers, events.Histograms, events.Sample, events.Eval):
        assert toy_run.of_type(told, kind), kind
    assert toy_run.of_type(told, events.RunEnded)[0].reason == "finished"
    assert {"nll_loss_backward", "embedding_dense_backward", "index_add_"} <= seen.names
    assert not seen.refused


def test_the_compiler_is_deterministic_with_the_run(determinism_ends: None) -> None:
    from torch._inductor import config

    devices.choose(recipes.Train(device="cpu", deterministic=True))
    assert config.deterministic


def test_the_rehearsal_measures_all_that_a_run_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise NotImplementedError("no such kernel")

    wanted = toy_run.recipe(stats={"every": 5, "budget": 1.0})
    for target, name in ((histograms, "_counts"), (Collector, "_weights_and_updates")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, broken)
            told = Trainer(wanted, toy_run.data(tmp_path)).run()
            assert isinstance(next(told), events.RunStarted)
            with pytest.raises(NotImplementedError):  # before the first step is told
                next(told)


def test_kernels_of_the_optimizer_are_not_billed_to_statistics(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device whose kernels take a second each, and run when somebody waits for them."""
    now, queued = 0.0, 0.0

    def launch(seconds: float) -> None:
        nonlocal queued
        queued += seconds

    def wait(_: Device) -> None:
        nonlocal now, queued
        now, queued = now + queued, 0.0

    activations = collector.activations
    monkeypatch.setattr(Device, "synchronize", wait)
    monkeypatch.setattr(collector, "clock", lambda: now)
    monkeypatch.setattr(collector, "activations", lambda: launch(2.0) or activations())
    monkeypatch.setattr(stats, "_to_host", lambda _: wait(META) or {})
    launch(30.0)  # a backward pass
    collector.before_update()
    launch(5.0)  # the optimizer
    collector.after_update(0, {}, step_seconds=1.0)
    assert collector.seconds == 2.0


def test_a_run_on_several_processes_says_how_many(tmp_path: Path) -> None:
    group = distributed.Group(rank=0, world=2)
    spec = resolve(toy_run.recipe(), toy_run.data(tmp_path), group=group)
    started = describe(spec, assemble(spec), step=0, begun_from="others")
    assert started.processes == 2
    assert events.decode(events.encode(started)) == started
    assert events.decode('{"type":"run_started","name":"old"}').processes == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_those_of_the_runs_number_format(tmp_path: Path, precision: str) -> None:
    trainer = Trainer(toy_run.recipe(train={"precision": precision}), toy_run.data(tmp_path))
    seen: list[torch.dtype] = []
    trainer.model.transformer.h[0].mlp.c_fc.register_forward_hook(
        lambda _, __, out: seen.append(out.dtype)
    )
    found = trainer.collector.activations().complete()
    assert seen == [torch.float32 if precision == "fp32" else torch.bfloat16]
    assert {value.dtype for column in found.values() for value in column} == {torch.float32}
