"""The items in the order in which they run: quick checks first, then what takes minutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nanogpt_cli.bench.on_gpu import compiled, decoding, hardware, numbers, profile, runs
from nanogpt_cli.bench.on_gpu.report import Report, Setting


@dataclass(frozen=True)
class Item:
    """One item.

    Attributes:
        work: carries it out; it adds parts to the report.
        limit_s: seconds that it may take.
        about: what it does, in a few words.
    """

    work: Callable[[Report, Setting], None]
    limit_s: float
    about: str


ITEMS = {
    "machine": Item(hardware.work, 120, "versions, speed, attention kernels, doctor"),
    "reference": Item(numbers.reference, 90, "a step against the CPU and float64"),
    "optimizers": Item(numbers.optimizers, 60, "AdamW against PyTorch's, Muon's singular values"),
    "compile": Item(compiled.graphs, 240, "one graph, the eager loss"),
    "syncs": Item(compiled.syncs, 150, "one synchronisation a step"),
    "decoding": Item(decoding.work, 90, "CUDA graphs give the eager text"),
    "training": Item(runs.training, 150, "train, resume, sample and eval as commands"),
    "resume": Item(runs.resume, 150, "verify-resume with dropout"),
    "groups": Item(runs.groups, 180, "a process group of one: DDP and FSDP2"),
    "profile": Item(profile.work, 300, "gpt2-124m by kernel group"),
    "against": Item(runs.against, 240, "training steps in turns with nanoGPT"),
}
