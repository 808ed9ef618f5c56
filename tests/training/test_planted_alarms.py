"""Alarms on real runs: a planted fault is noticed in time and at its layer, a healthy run is not.

The numbers of docs/experiments.md come from ``python tests/training/test_planted_alarms.py``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from planted import TUNING, Fault
from torch import Tensor

from nanogpt_cli.run import events
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.training.trainer import Trainer

pytestmark = [pytest.mark.numeric, pytest.mark.timeout(600)]
Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Planted:
    """A fault, and what must be said of it.

    Attributes:
        fault: how it is planted.
        kinds: alarms of which at least one must be raised.
        within: steps from the beginning of the fault to the first of them.
        since: the step before the fault's first.
        layer: that the alarm must name.
    """

    fault: Fault
    kinds: tuple[str, ...]
    within: int
    since: int = 0
    layer: int | None = None


def drawn(**laws: Any) -> Sections:
    """GPT-2's scheme with other laws."""
    return {"init": {"base": "gpt2-w", **laws}, "model": {"init": "custom"}}


def evaluated(*others: Sections) -> Sections:
    found: Sections = {"train": {"eval_every": 40}}
    for sections in others:
        for name, section in sections.items():
            found[name] = found.get(name, {}) | section
    return found


def targets(shift: int) -> Callable[[Trainer], None]:
    """Training on targets ``shift`` tokens too late; -1: the model sees what it is to predict."""

    def spoil(trainer: Trainer) -> None:
        right = trainer.stepper.batch

        def batch(step: int, slots: range) -> tuple[Tensor, Tensor]:
            x, y = right(step, slots)
            return (x, x) if shift < 0 else (x[:, :-shift], y[:, shift:])

        trainer.stepper.batch = batch  # type: ignore[method-assign]

    return spoil


def own_targets(trainer: Trainer) -> None:
    """Training and evaluating on the inputs as targets."""
    targets(-1)(trainer)
    right = trainer.model.token_losses
    own: Any = lambda ids, _: right(ids, ids)  # noqa: E731
    trainer.model.token_losses = trainer.stepper.token_losses = own  # type: ignore[method-assign]


@torch.no_grad()
def silence(trainer: Trainer) -> None:
    """A bias that no input overcomes, in the MLP of layer 2."""
    trainer.model.transformer.h[2].mlp.c_fc.bias.fill_(-20.0)


def slow_average(trainer: Trainer) -> None:
    """An average with a plain decay, which begins at the initial values."""
    average = trainer.stepper.average

    @torch.no_grad()
    def update(step: int) -> None:
        for name, value in average.values.items():
            value.lerp_(average.parameters[name], 1 - average.decay)

    average.update = update  # type: ignore[method-assign]


def one_window_first(trainer: Trainer) -> None:
    """110 steps of one window, then all: the gradients jump."""
    right = trainer.stepper.batch

    def batch(step: int, slots: range) -> tuple[Tensor, Tensor]:
        x, y = right(0, slots) if step < 110 else right(step, slots)
        return (x[:1].expand_as(x), y[:1].expand_as(y)) if step < 110 else (x, y)

    trainer.stepper.batch = batch  # type: ignore[method-assign]


_DEEP: Sections = {"model": {"n_layer": 24, "n_embd": 32, "n_head": 2}, "train": {"max_steps": 100}}
FAULTS: dict[str, Planted] = {
    "learning rate x 20": Planted(
        TUNING["lr x10"], ("attention_logits", "activation_growth", "loss_spike"), 60),
    "learning rate x 200": Planted(
        TUNING["lr x100"], ("activation_growth", "attention_logits", "dead_units"), 40),
    "no warmup, 24 layers": Planted(
        Fault((), _DEEP | {"optim": {"lr": 2e-2, "warmup_steps": 0}}), ("activation_growth",), 50),
    "beta2 0.999, gradients that jump": Planted(
        Fault((), {"optim": {"betas": [0.9, 0.999], "grad_clip": 0.0}}, spoil=one_window_first),
        ("loss_spike", "divergence"), 1, since=110),
    "one corrupted batch": Planted(
        TUNING["one corrupted batch"], ("loss_spike",), 1, since=100),
    "one layer x 30": Planted(TUNING["one layer x30"], ("attention_logits",), 30, layer=1),
    "zero attention logits": Planted(
        Fault((), drawn(qkv="constant(0)")), ("no_attention",), 30, layer=0),
    "huge attention logits": Planted(
        TUNING["huge attention logits"], ("attention_logits", "entropy_collapse"), 30, layer=0),
    "fp16 overflow": Planted(TUNING["fp16 overflow"], ("non_finite",), 1),
    "dead units in one layer": Planted(
        Fault((), {"model": {"bias": True, "activation": "relu"}}, spoil=silence),
        ("dead_units",), 30, layer=2),
    "targets one token early": Planted(
        Fault((), evaluated(), spoil=targets(-1)), ("split_gap",), 80),
    "targets one token early, evaluations too": Planted(
        Fault((), evaluated(), spoil=own_targets), ("low_loss",), 120),
    "targets one token late": Planted(
        Fault((), evaluated({"train": {"max_steps": 320}}), spoil=targets(1)), ("split_gap",), 320),
    "frozen layers": Planted(TUNING["frozen layer"], ("frozen",), 30, layer=0),
    "exploding embedding": Planted(TUNING["exploding embedding"], ("bad_start",), 1),
    "an average that lags": Planted(
        Fault((), evaluated({"optim": {"ema": 0.9999}}), spoil=slow_average), ("split_gap",), 80),
    "a validation split of 500 tokens": Planted(
        Fault((), evaluated(), text=lambda text: text[:5000]), ("small_validation",), 40),
}  # fmt: skip
# Runs in which nothing is wrong, each with another seed.
HEALTHY: dict[str, Sections] = {
    "as it is": {},
    "GPT-2's scheme": {"model": {"init": "gpt2"}},
    "no clipping": {"optim": {"grad_clip": 0.0}},
    "linear decay": {"optim": {"schedule": "linear"}},
    "cosine": {"optim": {"schedule": "cosine"}},
    "wsd": {"optim": {"schedule": "wsd"}},
    "half the rate": {"optim": {"lr": 1.5e-3}},
    "a tenth of the rate": {"optim": {"lr": 3e-4}},
    "dropout": {"model": {"dropout": 0.2}},
    "biases": {"model": {"bias": True}},
    "ReLU": {"model": {"activation": "relu"}},
    "Muon": {"optim": {"name": "muon", "muon_lr": 2e-2}},
    "an average": {"optim": {"ema": 0.99}},
    "bf16": {"train": {"precision": "bf16"}},
    "RMSNorm and RoPE": {"model": {"norm": "rms", "position": "rope"}},
    "qk_norm": {"model": {"qk_norm": True}},
    "SwiGLU": {"model": {"activation": "swiglu"}},
    "today's parts and Muon": {
        "model": {"norm": "rms", "position": "rope", "qk_norm": True, "n_kv_head": 2,
                  "activation": "swiglu"},
        "optim": {"name": "muon", "muon_lr": 2e-2},
    },
    "8 layers": {"model": {"n_layer": 8, "n_embd": 32}},
    "muP": {"model": {"init": "mup"}},
}  # fmt: skip
assert len(HEALTHY) == 20


def alarms(fault: Fault, folder: Path, text: str, seed: int = 11) -> list[events.Alarm]:
    """What a run with the fault raises."""
    run, _ = planted.plant(fault, folder, text, seed)
    found = EventReader(run.events).read_all()
    return [event for event in found if isinstance(event, events.Alarm) and event.active]


def noticed(found: list[events.Alarm], of: Planted) -> events.Alarm | None:
    """The first alarm about the fault, at the right layer."""
    told = [a for a in found if a.kind in of.kinds and a.step > of.since]
    return next((a for a in told if of.layer is None or a.layer == of.layer), None)


@functools.cache
def shakespeare(path: Path) -> str:
    return path.read_text(encoding="utf-8")[:400_000]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(name: str, tmp_path: Path, shakespeare_path: Path) -> None:
    of = FAULTS[name]
    found = alarms(of.fault, tmp_path, shakespeare(shakespeare_path))
    told = [(a.step, a.kind, a.layer) for a in found]
    assert (alarm := noticed(found, of)), told
    assert alarm.step - of.since <= of.within, told
    assert [a for a in found if a.step <= of.since and a.severity != "info"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_raises_no_alarm(name: str, tmp_path: Path, shakespeare_path: Path) -> None:
    seed = 100 + list(HEALTHY).index(name)
    sections = evaluated(HEALTHY[name])
    found = alarms(Fault((), sections), tmp_path, shakespeare(shakespeare_path), seed)
    # The speed is the machine's affair.
    assert [a.message for a in found if a.kind != "slow"] == []


@pytest.mark.parametrize("name", ["exploding embedding", "zero attention logits"])
def test_faults_of_the_start_are_noticed_soon(
    name: str, tmp_path: Path, shakespeare_path: Path
) -> None:
    of = FAULTS[name]
    found = alarms(of.fault, tmp_path, shakespeare(shakespeare_path))
    assert noticed(found, of)


def _table() -> None:
    """Print what every fault and every healthy run raises."""
    import tempfile

    from nanogpt_cli import assets

    text = shakespeare(assets.fetch("tinyshakespeare"))
    for name, of in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = alarms(of.fault, Path(folder), text)
        first = noticed(found, of)
        said = f"{first.kind} after {first.step - of.since}, layer {first.layer}" if first else "NO"
        others = [f"{a.step} {a.kind} {a.layer}" for a in found if a is not first][:8]
        sys.stdout.write(f"{name} | {said} | {'; '.join(others)}\n")
        sys.stdout.flush()
    for number, (name, sections) in enumerate(HEALTHY.items()):
        with tempfile.TemporaryDirectory() as folder:
            found = alarms(Fault((), evaluated(sections)), Path(folder), text, 100 + number)
        sys.stdout.write(f"healthy: {name} | {[(a.step, a.kind, a.layer) for a in found]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _table()
