"""Items ``compile`` and ``syncs``: what PyTorch's compiler makes of a step, and who waits in it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from nanogpt_cli.bench.on_gpu import setup
from nanogpt_cli.bench.on_gpu.report import Part, Report, Setting

if TYPE_CHECKING:
    import torch

    from nanogpt_cli.training.stepper import Stepper

_STEPS = 3
# Of training steps that wait for the GPU once; on one, a compiled step too.
_WAYS = {
    "eager": ["train.compile=false"],
    "muon": ["train.compile=false", 'optim.name="muon"', "optim.ema=0.9"],
    "dropout": ["train.compile=false", "model.dropout=0.1"],
}


def graphs(report: Report, setting: Setting) -> None:
    """The trial before a run compiles one graph, and the steps after it compile nothing."""
    batch = setting.size(12, 2)
    sets = setup.gpt2(
        setting, "model.n_layer=2", f"train.batch_size={batch}",
        f"train.tokens_per_step={batch * setting.size(1024, 32)}", "optim.warmup_steps=0",
    )  # fmt: skip
    for precision in ("fp32", "bf16"):
        with report.part(precision) as part, _empty_cache(setting):
            _one_graph(part, [*sets, f"train.precision={precision}"], precision)


def _empty_cache(setting: Setting) -> AbstractContextManager[object]:
    """A compiler cache of its own, so that the seconds are those of the first time."""
    folder = tempfile.mkdtemp(dir=setting.folder)
    return mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder)


def _one_graph(part: Part, sets: list[str], precision: str) -> None:
    import torch
    from torch._dynamo.utils import counters

    eager = _losses(setup.stepper("gpt2-124m-nanogpt", [*sets, "train.compile=false"]))
    torch._dynamo.reset()
    counters.clear()
    started = time.perf_counter()
    stepper = setup.stepper("gpt2-124m-nanogpt", [*sets, "train.compile=true"])
    part.facts["seconds_to_compile"] = time.perf_counter() - started
    part.facts["graphs"] = counters["stats"]["unique_graphs"]
    part.facts["breaks"] = dict(counters["graph_break"])
    part.check(part.facts["graphs"] == 1, f"{part.facts['graphs']} graphs were compiled")
    part.check(not part.facts["breaks"], f"the graph breaks at {part.facts['breaks']}")
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = _losses(stepper)
    compiled = counters["stats"]["unique_graphs"] - part.facts["graphs"]
    part.check(compiled == 0, f"the steps compiled {compiled} more graphs")
    setup.compare(part, found, eager, precision, stepper.model.config.n_embd)


def _losses(stepper: Stepper) -> list[float]:
    return [stepper.step(index).loss for index in range(_STEPS)]


def syncs(report: Report, setting: Setting) -> None:
    """A step waits for the GPU once, to read its loss and gradient norm."""
    batch, T = setting.size(4, 2), setting.size(1024, 32)
    plain = setup.gpt2(
        setting, "model.n_layer=2", f"train.batch_size={batch}",
        f"train.tokens_per_step={2 * batch * T}", "optim.grad_clip=0.001",
    )  # fmt: skip
    ways = _WAYS if setting.tiny else _WAYS | {"compiled": ["train.compile=true"]}
    for name, more in ways.items():
        with report.part(name) as part:
            _one_sync(part, setup.stepper("gpt2-124m-nanogpt", [*plain, *more]))


def _one_sync(part: Part, stepper: Stepper) -> None:
    for index in range(2):  # libraries wait when they set themselves up
        stepper.step(index)
    counted: list[None] = []
    with _only_the_transfer(stepper.device.device, counted):
        for index in range(2, 2 + _STEPS):
            stepper.step(index)
    on_gpu = stepper.device.device.type == "cuda"
    part.facts |= {"steps": _STEPS, "transfers": len(counted), "errors_armed": on_gpu}
    part.check(len(counted) == _STEPS, f"{len(counted)} transfers in {_STEPS} steps")


@contextmanager
def _only_the_transfer(device: torch.device, counted: list[Any]) -> Iterator[None]:
    """Make every synchronising call an error, except for ``Tensor.tolist``, which is counted."""
    import torch

    plain = torch.Tensor.tolist

    def set_mode(mode: str) -> None:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    def tolist(self: torch.Tensor) -> Any:
        counted.append(None)
        set_mode("default")
        try:
            return plain(self)
        finally:
            set_mode("error")

    with mock.patch.object(torch.Tensor, "tolist", tolist):
        set_mode("error")
        try:
            yield
        finally:
            set_mode("default")
