"""Items of whole commands: ``training``, ``resume``, ``groups`` and ``against``."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nanogpt_cli.bench.on_gpu import setup
from nanogpt_cli.bench.on_gpu.commands import command, log, losses, notes, settings
from nanogpt_cli.bench.on_gpu.report import Part, Report, Setting, Skipped
from nanogpt_cli.run import events

_SHORT = (
    "train.max_steps=20", "train.eval_every=10", "train.checkpoint_every=10",
    "sample.max_new_tokens=20", "optim.warmup_steps=2", 'sample.prompt="a"',
)  # fmt: skip
_CHANNELS = 32  # of the recipe debug


def training(report: Report, setting: Setting) -> None:
    """Train, evaluate, sample, save, resume, sample again: plainly, and deterministically in bf16.

    Here and below, commands that only have to be right run side by side.
    """
    plain = [*setup.letters(setting), *_SHORT]
    ways = {
        "plain": plain,
        "deterministic, bf16": [
            *plain, "train.deterministic=true", 'train.precision="bf16"',
        ],
    }  # fmt: skip
    with ThreadPoolExecutor() as pool:
        lives = {
            name: pool.submit(_live, sets, setting.folder / str(number))
            for number, (name, sets) in enumerate(ways.items())
        }
        for name, life in lives.items():
            with report.part(name) as part:
                _check_life(part, *life.result())


def _live(sets: list[str], out: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A run's life; its folder, and what the commands said: train twice, sample, eval."""
    where = ("--out", str(out), "--json")
    begun = json.loads(command("train", "debug", *settings(sets), *where))
    run = begun["run"]
    more = settings(["train.max_steps=30"])
    resumed = json.loads(command("train", run, "--resume", *more, *where))
    drawn = json.loads(command("sample", run, "-n", "20", "--prompt", "a", "--json"))
    judged = json.loads(command("eval", run, "--json"))
    return Path(run), [begun, resumed, drawn, judged]


def _check_life(part: Part, run: Path, said: list[dict[str, Any]]) -> None:
    begun, resumed, drawn, judged = said
    found = log(run)
    evaluated = sorted({event.step for event in found if isinstance(event, events.Eval)})
    part.facts |= {
        "ended": [begun["reason"], resumed["reason"]], "steps": resumed["step"],
        "notes": notes(run), "evaluated": evaluated, "losses": losses(run)[::10],
        "samples": sum(isinstance(event, events.Sample) for event in found),
        "best_val_loss": resumed["best_val_loss"], "eval_loss": judged["loss"],
        "sample_tokens_per_s": drawn["tokens_per_s"],
    }  # fmt: skip
    part.check(set(part.facts["ended"]) == {"finished"}, f"it ended: {part.facts['ended']}")
    part.check(resumed["step"] == len(losses(run)) == 30, f"{len(losses(run))} steps are logged")
    part.check({10, 20, 30} <= set(evaluated), f"evaluated only after steps {evaluated}")
    part.check(part.facts["samples"] > 0, "no sample was drawn")
    # The command evaluates in float32 what the run may have evaluated in bf16.
    allowed = setup.rounding("bf16", 0)
    close = math.isclose(judged["loss"], resumed["best_val_loss"], rel_tol=allowed)
    part.check(close, f"eval says {judged['loss']}, the run {resumed['best_val_loss']}")


def resume(report: Report, setting: Setting) -> None:
    """``verify-resume`` with dropout, eager and compiled.

    Bit for bit is promised with train.deterministic alone; what happens without it is a fact.
    """
    plain = [*setup.letters(setting), "model.dropout=0.1", "optim.warmup_steps=2"]
    ways = {
        "eager, deterministic": ["train.compile=false", "train.deterministic=true"],
        "compiled, deterministic": ["train.compile=true", "train.deterministic=true"],
        "eager": ["train.compile=false"],
    }
    with ThreadPoolExecutor() as pool:
        checks = {
            name: pool.submit(
                command, "verify-resume", "debug", *settings([*plain, *sets]), "--steps", "8",
                "--json", codes=(0, 1),
            )
            for name, sets in ways.items()
        }  # fmt: skip
        for name, check in checks.items():
            with report.part(name) as part:
                part.facts |= json.loads(check.result())
                promised = "deterministic" in name
                part.check(
                    part.facts["equal"] or not promised, f"differs: {part.facts['differing']}"
                )


def groups(report: Report, setting: Setting) -> None:
    """DDP and FSDP2, compiled, in a process group of one; the losses are those of no group."""
    sets = [
        *setup.letters(setting), "train.max_steps=3", "train.eval_every=3",
        "sample.max_new_tokens=0", "optim.warmup_steps=0", "train.compile=true",
    ]  # fmt: skip
    ways = {"alone": "0", "ddp": "1", "fsdp": "1"}  # by name, NANOGPT_JOIN_ALONE
    with ThreadPoolExecutor() as pool:
        said = {
            name: pool.submit(
                command, "train", "debug",
                *settings([*sets, *([f'train.parallel="{name}"'] if name != "alone" else [])]),
                "--out", str(setting.folder / name), "--json",
                environment={"NANOGPT_JOIN_ALONE": joined},
            )
            for name, joined in ways.items()
        }  # fmt: skip
        for name, one in said.items():
            with report.part(name) as part:
                run = Path(json.loads(one.result())["run"])
                part.facts["notes"] = notes(run)
                alone = Path(json.loads(said["alone"].result())["run"])
                setup.compare(part, losses(run), losses(alone), "fp32", _CHANNELS)


def against(report: Report, setting: Setting) -> None:
    """``bench train`` in turns with nanoGPT, 64 × 1024 tokens a step."""
    with report.part("bench train") as part:
        if setting.against is None:
            raise Skipped("no checkout of nanoGPT was given (--against PATH)")
        batch = setting.size(64, 2)
        sets = setup.gpt2(
            setting, f"train.batch_size={batch}",
            f"train.tokens_per_step={batch * setting.size(1024, 32)}",
            *(["train.compile=false"] if setting.tiny else []),
        )  # fmt: skip
        words = ["bench", "train", "--recipe", "gpt2-124m-nanogpt", *settings(sets)]
        words += ["--against", str(setting.against), "--json"]
        words += ["--turns", "2", "--seconds", "0.2"] if setting.tiny else ["--turns", "4"]
        part.facts |= json.loads(command(*words))
