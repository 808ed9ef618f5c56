"""Item ``profile``: gpt2-124m's training step by kernel group."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from nanogpt_cli.bench.on_gpu import setup
from nanogpt_cli.bench.on_gpu.report import Part, Report, Setting

if TYPE_CHECKING:
    from nanogpt_cli.training.stepper import Stepper

_STEPS = 3
_SHOWN = 20  # kernels that are named one by one
_NAME = 120

# The first that matches a kernel's name is its group. Fused kernels are named after what was fused.
GROUPS = {
    "optimizer": re.compile(r"multi_tensor_apply|adam|foreach|lpnorm", re.I),
    "attention": re.compile(r"flash|fmha|sdpa|attention", re.I),
    "loss": re.compile(r"softmax|logsumexp|nll|cross_entropy|gather|_exp_", re.I),
    "norm": re.compile(r"layer_?norm", re.I),
    "matmul": re.compile(
        r"^(?!triton_(poi|red|per)_).*(gemm|nvjet|cutlass|xmma|cublas|splitk|mm(?![a-z])|matmul)",
        re.I,
    ),
}


class Kernel(NamedTuple):
    """All calls of one kernel.

    Attributes:
        name: as the profiler has it.
        ms: milliseconds of a step, all calls together.
        calls: of a step.
    """

    name: str
    ms: float
    calls: float


def work(report: Report, setting: Setting) -> None:
    """Batches of 12, 32 and 64 × 1024 tokens, and the largest of them with Muon."""
    import torch

    ways = [(batch, "adamw") for batch in ((2, 4) if setting.tiny else (12, 32, 64))]
    for batch, optimizer in [*ways, (ways[-1][0], "muon")]:
        with report.part(f"batch {batch}, {optimizer}") as part:
            sets = setup.gpt2(
                setting, f"train.batch_size={batch}", f'optim.name="{optimizer}"',
                f"train.tokens_per_step={batch * setting.size(1024, 32)}",
            )  # fmt: skip
            _profile(part, setup.stepper("gpt2-124m-nanogpt", sets), setting)
        if setting.device == "cuda":
            torch.compiler.reset()  # what is compiled for a model holds it
            gc.collect()  # a model is part of circles
            torch.cuda.empty_cache()


def _profile(part: Part, stepper: Stepper, setting: Setting) -> None:
    import torch

    from nanogpt_cli import host
    from nanogpt_cli.model.accounting import training_flops

    device = stepper.device
    cuda = device.device.type == "cuda"
    numbers = iter(range(1 << 30))
    if cuda:
        torch.cuda.reset_peak_memory_stats(device.device)
    took = setup.seconds(
        lambda: stepper.step(next(numbers)), device.device, repeats=setting.size(20, 3)
    )
    tokens = stepper.windows.batch * stepper.windows.block_size
    flops = training_flops(stepper.model.config) * tokens / took
    part.facts |= {
        "batch": stepper.windows.batch, "block_size": stepper.windows.block_size,
        "precision": device.precision, "compiled": device.compile, "notes": device.notes,
        "step_ms": 1e3 * took, "tokens_per_s": tokens / took, "flops_per_s": flops,
        "mfu": flops / device.peak_flops if device.peak_flops else None,
        "peak_bytes": torch.cuda.max_memory_allocated(device.device) if cuda
        else host.peak_bytes(),
    }  # fmt: skip
    kernels = _kernels(stepper, numbers, setting)
    part.facts |= grouped(kernels, 1e3 * took)
    part.check(bool(kernels), "the profiler saw no kernel")
    part.check(device.compile or not cuda, f"the step is not compiled: {device.notes}")


def _kernels(stepper: Stepper, numbers: Iterator[int], setting: Setting) -> list[Kernel]:
    """What ran in some steps: kernels and copies on a GPU, operators on a CPU."""
    from torch.profiler import ProfilerActivity, profile

    cuda = stepper.device.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with profile(activities=activities) as profiler:
        for _ in range(_STEPS):
            stepper.step(next(numbers))
        setup.synchronize(stepper.device.device)
    if not cuda:
        return [
            Kernel(event.key, event.self_cpu_time_total / 1e3 / _STEPS, event.count / _STEPS)
            for event in profiler.key_averages()
        ]
    trace = setting.folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    found = json.loads(trace.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    trace.unlink()
    return on_gpu(found, _STEPS)


def on_gpu(events: list[dict[str, Any]], steps: int) -> list[Kernel]:
    """The kernels and copies among a trace's events, of ``steps`` steps."""
    totals: dict[str, tuple[float, int]] = {}
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            ms, calls = totals.get(event["name"], (0.0, 0))
            totals[event["name"]] = ms + event["dur"] / 1e3, calls + 1
    return [Kernel(name, ms / steps, calls / steps) for name, (ms, calls) in totals.items()]


def grouped(kernels: list[Kernel], step_ms: float) -> dict[str, Any]:
    """Milliseconds by group, and the longest kernels.

    ``idle`` is what the kernels, one after the other, leave of a step that was not profiled: 0 if
    several of them ran side by side.
    """
    groups = dict.fromkeys([*GROUPS, "other"], 0.0)
    longest = sorted(kernels, key=lambda kernel: -kernel.ms)
    for kernel in kernels:
        groups[group_of(kernel.name)] += kernel.ms
    groups["idle"] = max(0.0, step_ms - sum(groups.values()))
    named = [
        {"name": kernel.name[:_NAME], "group": group_of(kernel.name), "ms": kernel.ms,
         "calls": kernel.calls}
        for kernel in longest[:_SHOWN]
    ]  # fmt: skip
    return {"groups_ms": groups, "kernels": named}


def group_of(name: str) -> str:
    """The group of a kernel or an operator."""
    return next((group for group, words in GROUPS.items() if words.search(name)), "other")
