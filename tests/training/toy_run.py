"""A data set and recipes small enough that a training run takes a tenth of a second."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_cli.recipe import Recipe
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text import prepare
from nanogpt_cli.text.tokens import TokenData, open_data
from nanogpt_cli.training.trainer import Trainer

torch.set_num_threads(1)  # models this small only lose time to a second thread

WORDS = ("the", "king", "and", "queen", "of", "night", "were", "walking", "under", "trees", "rain")

# Keys of a model of today's parts that fits the tiny recipe.
MODERN = {
    "norm": "rms", "position": "rope", "qk_norm": True, "n_kv_head": 1, "activation": "swiglu",
}  # fmt: skip


@functools.cache
def text(words: int = 4000) -> str:
    rng = random.Random(0)
    return " ".join(rng.choice(WORDS) for _ in range(words)) + "\n"


def data(folder: Path) -> TokenData:
    """A prepared character-level set of some 20,000 tokens."""
    source = folder / "toy.txt"
    if not source.exists():
        source.write_text(text(), encoding="utf-8")
    made = prepare.ensure({"name": str(source), "tokenizer": "char"}, report=lambda _: None)
    return open_data(made)


def recipe(**sections: dict[str, Any]) -> Recipe:
    """A tiny recipe; keyword arguments override keys of its sections."""
    values: dict[str, dict[str, Any]] = {
        "run": {"name": "toy", "seed": 7},
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "init": "gpt2-w"},
        "train": {
            "max_steps": 12,
            "batch_size": 4,
            "tokens_per_step": 128,
            "eval_every": 4,
            "checkpoint_every": 4,
            "precision": "fp32",
            "device": "cpu",
        },
        "optim": {"lr": 1e-2, "warmup_steps": 3},
        "stats": {"budget": 0.0},
        "sample": {"max_new_tokens": 0},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return recipe_files.from_values(values)


def run(trainer: Trainer, steps: int | None = None) -> list[events.Event]:
    """Every event of a run, or those until ``steps`` steps were made and the run was stopped."""
    found: list[events.Event] = []
    for event in trainer.run():
        found.append(event)
        if isinstance(event, events.Step) and event.step == steps:
            trainer.should_stop = lambda: True
    return found


def folder(path: Path) -> RunFolder:
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path)


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, their averages and optimizer state by name, copied."""
    weights = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
    averages = {f"average.{k}": v for k, v in trainer.stepper.average.values.items()}
    moments = trainer.stepper.optimizers.tensors()
    return {k: v.clone() for k, v in (weights | averages | moments).items()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names of the tensors whose bits are not the same."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def losses(found: list[events.Event]) -> dict[int, float]:
    return {event.step: event.loss for event in found if isinstance(event, events.Step)}


def of_type(found: list[events.Event], kind: type[events.Event]) -> list[Any]:
    return [event for event in found if isinstance(event, kind)]
