"""Items of whole commands: ``training``, ``resume``, ``groups`` and ``against``."""

from __future__ import annotations

import json
import math
from pathlib import Path

from nanogpt_cli.bench.on_gpu import setup
from nanogpt_cli.bench.on_gpu.commands import command, log, losses, notes, settings
from nanogpt_cli.bench.on_gpu.report import Part, Report, Setting, Skipped
from nanogpt_cli.run import events

_SHORT = (
    "train.max_steps=20", "train.eval_every=10", "train.checkpoint_every=10",
    "sample.max_new_tokens=20", "optim.warmup_steps=2", 'sample.prompt="a"',
)  # fmt: skip


def training(report: Report, setting: Setting) -> None:
    """Train, evaluate, sample, save, resume, sample again: plainly, and deterministically."""
    plain = [*setup.letters(setting), *_SHORT]
    ways = {
        "plain": plain,
        "bf16": [*plain, 'train.precision="bf16"'],
        "deterministic": [*plain, "train.deterministic=true"],
    }
    for name, sets in ways.items():
        with report.part(name) as part:
            _train(part, sets, setting.folder / name)


def _train(part: Part, sets: list[str], out: Path) -> None:
    first = json.loads(command("train", "debug", *settings(sets), "--out", str(out), "--json"))
    run = Path(first["run"])
    more = settings(["train.max_steps=30"])
    last = json.loads(command("train", str(run), "--resume", *more, "--out", str(out), "--json"))
    found = log(run)
    evaluated = sorted({event.step for event in found if isinstance(event, events.Eval)})
    part.facts |= {
        "ended": [first["reason"], last["reason"]], "steps": last["step"], "notes": notes(run),
        "evaluated": evaluated, "losses": losses(run)[:: 10], "best": last["best_val_loss"],
        "samples": sum(isinstance(event, events.Sample) for event in found),
    }  # fmt: skip
    part.check(first["reason"] == last["reason"] == "finished", f"it ended: {part.facts['ended']}")
    part.check(len(losses(run)) == last["step"] == 30, f"{len(losses(run))} steps are logged")
    part.check({10, 20, 30} <= set(evaluated), f"evaluated only after steps {evaluated}")
    part.check(part.facts["samples"] > 0, "no sample was drawn")
    drawn = json.loads(command("sample", str(run), "-n", "20", "--prompt", "a", "--json"))
    part.facts["sample_tokens_per_s"] = drawn["tokens_per_s"]
    loss = json.loads(command("eval", str(run), "--json"))["loss"]
    part.check(math.isclose(loss, last["best_val_loss"], rel_tol=1e-2), f"eval says {loss}")


def resume(report: Report, setting: Setting) -> None:
    """``verify-resume`` with dropout, eager and compiled.

    Bit for bit is promised with train.deterministic alone; without it, what happens is a fact.
    """
    plain = [*setup.letters(setting), "model.dropout=0.1", "optim.warmup_steps=2"]
    for promised in (True, False):
        for compiled in ("false", "true"):
            name = "compiled" if compiled == "true" else "eager"
            with report.part(f"{name}, deterministic" if promised else name) as part:
                sets = [*plain, f"train.compile={compiled}"]
                sets += [f"train.deterministic={str(promised).lower()}"]
                words = ["verify-resume", "debug", *settings(sets), "--steps", "8", "--json"]
                found = json.loads(command(*words, codes=(0, 1)))
                part.facts |= found
                part.check(found["equal"] or not promised, f"differs: {found['differing']}")


def groups(report: Report, setting: Setting) -> None:
    """DDP and FSDP2, compiled, in a process group of one; the losses are those of no group."""
    sets = [
        *setup.letters(setting), "train.max_steps=3", "train.eval_every=3",
        "sample.max_new_tokens=0", "optim.warmup_steps=0", "train.compile=true",
    ]  # fmt: skip
    alone: list[float] = []
    for name in ("alone", "ddp", "fsdp"):
        with report.part(name) as part:
            joined = {"NANOGPT_JOIN_ALONE": "0" if name == "alone" else "1"}
            more = [] if name == "alone" else [f'train.parallel="{name}"']
            words = ["train", "debug", *settings([*sets, *more])]
            words += ["--out", str(setting.folder / name), "--json"]
            run = Path(json.loads(command(*words, environment=joined))["run"])
            found = losses(run)
            alone = alone or found
            part.facts |= {"losses": found, "notes": notes(run)}
            allowed = setup.rounding("fp32", 32)
            gap = max(abs(a - b) / b for a, b in zip(found, alone, strict=True))
            part.check(gap <= allowed, f"losses differ by {gap:.2g} from those of no group")


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
        words = ["bench", "train", "--recipe", "gpt2-124m", *settings(sets)]
        words += ["--against", str(setting.against), "--json"]
        words += ["--turns", "2", "--seconds", "0.2"] if setting.tiny else ["--turns", "4"]
        part.facts |= json.loads(command(*words))
