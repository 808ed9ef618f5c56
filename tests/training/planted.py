"""Runs with a planted fault: small models on tiny Shakespeare, trained for real."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import toy_run

from nanogpt_cli import files
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run.commands import send_command
from nanogpt_cli.run.events import Step
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text import prepare
from nanogpt_cli.text.tokens import TokenData, open_data
from nanogpt_cli.training.batches import Windows
from nanogpt_cli.training.drive import drive, newest_checkpoint
from nanogpt_cli.training.trainer import Trainer

BASE: dict[str, dict[str, Any]] = {
    "run": {"name": "planted", "seed": 11},
    "model": {"n_layer": 4, "n_head": 4, "n_embd": 64, "block_size": 32, "init": "gpt2-w"},
    "train": {
        "max_steps": 160, "batch_size": 16, "tokens_per_step": 512, "eval_every": 0,
        "checkpoint_every": 40, "keep": 20, "precision": "fp32", "device": "cpu", "parts": 1,
    },
    "optim": {"lr": 3e-3, "warmup_steps": 20, "schedule": "constant", "betas": [0.9, 0.95]},
    "stats": {"every": 10},
    "sample": {"max_new_tokens": 0},
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """What is wrong with a run.

    Attributes:
        causes: kinds of trials that name the cause; the first one is the planted change undone.
        sections: overrides of ``BASE``.
        corrupt: (step, sequences) whose windows hold noise instead of text.
        resume: (step, sections): the run is stopped there and goes on with these changes.
        stop: the step at which the last session ends; 0: all steps are made.
        command: (step, name, argument) sent from the dashboard.
        kind: of the event that is to be explained; "" for any.
        spoil: changes the trainer before its first step, as other code would.
        text: what to train on instead of the text given.
    """

    causes: tuple[str, ...]
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    corrupt: tuple[tuple[int, int], ...] = ()
    resume: tuple[int, dict[str, dict[str, Any]]] | None = None
    stop: int = 0
    command: tuple[int, str, str] | None = None
    kind: str = ""
    spoil: Callable[[Trainer], None] | None = None
    text: Callable[[str], str] | None = None


def merged(*all_sections: dict[str, dict[str, Any]]) -> Recipe:
    values: dict[str, dict[str, Any]] = {}
    for sections in all_sections:
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section
    return recipe_files.from_values(values)


def plant(fault: Fault, folder: Path, text: str, seed: int = 11) -> tuple[RunFolder, TokenData]:
    """Train a run with the fault; its folder and data."""
    recipe = merged(BASE, {"run": {"seed": seed}}, fault.sections)
    data = corrupted(fault, folder, fault.text(text) if fault.text else text, recipe)
    run = toy_run.folder(folder / "run")
    named = recipe.model_copy(update={"data": recipe.data.model_copy(
        update={"name": str(data.folder)})})  # fmt: skip
    files.write_text(run.recipe, recipe_files.to_toml(named))
    trained(run, named, data, fault)
    if fault.resume:
        changed = merged(BASE, {"run": {"seed": seed}}, fault.sections, fault.resume[1])
        changed = changed.model_copy(update={"data": named.data})
        trained(run, changed, data, fault, resume=True)
    return run, data


def trained(
    run: RunFolder, recipe: Recipe, data: TokenData, fault: Fault, *, resume: bool = False
) -> None:
    """Train to the end, or up to where the run is to be stopped."""
    stop = fault.resume[0] if fault.resume and not resume else fault.stop
    asked: list[bool] = []

    def start() -> Trainer:
        found = newest_checkpoint(run, lambda _: None) if resume else None
        made = Trainer(recipe, data, run, checkpoint=found, should_stop=lambda: bool(asked))
        if fault.spoil:
            fault.spoil(made)
        return made

    with contextlib.closing(drive(run, recipe, start, resume=resume)) as told:
        for event in told:
            if isinstance(event, Step) and event.step == stop:
                asked.append(True)
            if fault.command and isinstance(event, Step) and event.step == fault.command[0]:
                send_command(run, *fault.command[1:])


def corrupted(fault: Fault, folder: Path, text: str, recipe: Recipe) -> TokenData:
    """Shakespeare with noise in the windows that the fault names."""
    letters = "".join(sorted(set(text)))

    def prepared(name: str, content: str) -> TokenData:
        source = folder / name
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(content, encoding="utf-8")
        made = prepare.ensure({"name": str(source), "tokenizer": "char"}, report=lambda _: None)
        return open_data(made)

    if not fault.corrupt:
        return prepared("text.txt", text)
    T = recipe.model.block_size
    windows = Windows(
        seed=recipe.run.seed, n_tokens=len(prepared("clean.txt", text).train), block_size=T,
        batch=recipe.tokens_per_step // T, order=recipe.data.order,
    )  # fmt: skip
    characters = np.array(list(text))
    rng = np.random.default_rng(5)
    for step, sequences in fault.corrupt:
        for offset in windows.offsets(step - 1, range(sequences)):
            span = slice(int(offset), int(offset) + T + 1)
            characters[span] = rng.choice(list(letters), T + 1)
    return prepared("text.txt", "".join(characters))


_STD = "sqrt(2 / (5*d))"
# What the ranking was tuned on.
TUNING: dict[str, Fault] = {
    "lr x10": Fault(("lr",), {"optim": {"lr": 6e-2, "grad_clip": 0.0}}),
    "lr x100": Fault(("lr",), {"optim": {"lr": 6e-1}}),
    "one corrupted batch": Fault(("data",), corrupt=((101, 16),)),
    "one layer x30": Fault(
        ("init",),
        {
            "init": {
                "base": "gpt2-w",
                "linear": f"normal({_STD} * (1 + 29 * max(0, 1 - (l-1)^2)))",
            },
            "model": {"init": "custom"},
        },
    ),
    "huge attention logits": Fault(
        ("init", "qk_norm"),
        {"init": {"base": "gpt2-w", "qkv": "normal(1.5)"}, "model": {"init": "custom"}},
    ),
    "fp16 overflow": Fault(
        ("precision",),
        {
            "init": {"base": "gpt2-w", "fc": "normal(2e4)", "mlp_proj": "normal(1e-7)"},
            "model": {"init": "custom"},
            "train": {"precision": "fp16", "max_steps": 100},
            "optim": {"lr": 1e-3},
        },
    ),
    "dead units": Fault(
        ("init",),
        {
            "init": {"base": "gpt2-w", "bias": "constant(-6)"},
            "model": {"init": "custom", "bias": True, "activation": "relu"},
        },
    ),
    "frozen layer": Fault(
        ("multipliers", "init"),
        {"init": {"base": "gpt2-w", "lr": {"linear": "0"}}, "model": {"init": "custom"}},
    ),
    "exploding embedding": Fault(
        ("init",), {"init": {"base": "gpt2-w", "wte": "normal(4)"}, "model": {"init": "custom"}}
    ),
    "healthy": Fault(()),
}
# Written after the ranking was tuned, and not used for it.
UNSEEN: dict[str, Fault] = {
    "two corrupted documents": Fault(("data",), corrupt=((62, 6), (97, 9))),
    "weight decay 10": Fault(("weight_decay",), {"optim": {"weight_decay": 10.0, "lr": 1e-2}}),
    "Muon's momentum 0.999": Fault(
        ("momentum",), {"optim": {"name": "muon", "muon_lr": 1e-1, "momentum": 0.999}}
    ),
    "warmup cut after a resume": Fault(
        ("resume",),
        {"optim": {"lr": 3e-1, "warmup_steps": 2000}, "train": {"max_steps": 2000}},
        resume=(40, {"optim": {"lr": 3e-1, "warmup_steps": 0}}),
        stop=110,
    ),
    "learning rate x100 of one class": Fault(
        ("multipliers", "init"),
        {"init": {"base": "gpt2-w", "lr": {"qkv": "100"}}, "model": {"init": "custom"}},
    ),
    "initial std 0.2": Fault(
        ("init",),
        {
            "init": {"base": "gpt2-w", "embedding": "normal(0.2)", "linear": "normal(0.2)"},
            "model": {"init": "custom"},
        },
    ),
    "learning rate x30 from the dashboard": Fault(("command",), command=(60, "lr", "30")),
    "a corrupted batch under Muon": Fault(
        ("data",), {"optim": {"name": "muon", "muon_lr": 2e-2}}, corrupt=((71, 12),)
    ),
    "Muon's learning rate x30": Fault(("lr",), {"optim": {"name": "muon", "muon_lr": 0.6}}),
    "attention scaled by 30": Fault(
        ("init", "qk_norm"),
        {
            "init": {"base": "gpt2-w", "multipliers": {"attention": "30"}},
            "model": {"init": "custom"},
        },
    ),
    "learning rate x30 at a resume": Fault(("resume",), resume=(80, {"optim": {"lr": 9e-2}})),
}
# Written after all changes of the ranking, which no result of theirs led to.
LATER: dict[str, Fault] = {
    "half a batch corrupted, with dropout": Fault(
        ("data",), {"model": {"dropout": 0.1}}, corrupt=((87, 8),)
    ),
    "learning rate x40 at a resume, under Muon": Fault(
        ("resume",),
        {"optim": {"name": "muon", "muon_lr": 2e-2}},
        resume=(80, {"optim": {"name": "muon", "muon_lr": 0.8}}),
    ),
    "logits x30": Fault(
        ("init",), {"init": {"base": "gpt2-w", "multipliers": {"output": "30"}},
                    "model": {"init": "custom"}},
    ),
    "learning rate x300 of the MLPs": Fault(
        ("multipliers", "init"),
        {"init": {"base": "gpt2-w", "lr": {"fc": "300", "mlp_proj": "300"}},
         "model": {"init": "custom"}},
    ),
    "learning rate x50 from the dashboard, under Muon": Fault(
        ("command",), {"optim": {"name": "muon", "muon_lr": 2e-2}}, command=(70, "lr", "50")
    ),
    "learning rate x30, six layers": Fault(
        ("lr",), {"optim": {"lr": 9e-2}, "model": {"n_layer": 6, "n_embd": 48, "n_head": 3}}
    ),
    "a corrupted batch, today's parts": Fault(
        ("data",),
        {"model": {"norm": "rms", "position": "rope", "activation": "swiglu"}},
        corrupt=((111, 16),),
    ),
    "scores x100 by the queries": Fault(
        ("init", "qk_norm"), {"init": {"base": "gpt2-w", "qkv": "normal(2.5)"},
                              "model": {"init": "custom", "n_layer": 3}},
    ),
    "weight decay 30": Fault(
        ("weight_decay",), {"optim": {"weight_decay": 30.0, "lr": 3e-3}}
    ),
    "learning rate x20, no clipping, at a resume": Fault(
        ("resume",), resume=(100, {"optim": {"lr": 6e-2, "grad_clip": 0.0}})
    ),
}  # fmt: skip
