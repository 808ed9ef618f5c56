"""``nanogpt bench race``: measure launch to trained model, against nanoGPT's command for CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli import shell
from nanogpt_cli.bench import history, turns
from nanogpt_cli.cli import console, options
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.model.gpt import GPT
    from nanogpt_cli.recipe import Recipe
    from nanogpt_cli.text.tokens import TokenData

# The command that nanoGPT's README recommends for machines with only a CPU.
NANOGPT_ARGUMENTS = (
    "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20",
    "--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4",
    "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0",
)  # fmt: skip
_THEIR_TOKENS = 2000 * 12 * 64


@dataclass(frozen=True)
class Lap:
    """One program's run, measured from launch to exit.

    Attributes:
        name: name of the program.
        seconds: wall-clock time, including imports.
        cpu_seconds: CPU time of all its threads.
        tokens: number of tokens trained on.
        val_loss: loss of its best checkpoint over the whole validation split, in nats.
    """

    name: str
    seconds: float
    cpu_seconds: float
    tokens: int
    val_loss: float


def register(group: typer.Typer) -> None:
    """Add ``race`` to the group of benchmarks."""
    group.command(name="race")(bench_race)


def bench_race(
    recipe: Annotated[
        str, typer.Option("--recipe", help="The recipe that we train: a name or file.")
    ] = "small",
    sets: options.Sets = None,
    against: options.NanoGPT = None,
    target: Annotated[float, typer.Option(help="Validation loss to reach, in nats.")] = 1.88,
    out: history.History = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure the time from launch to a trained model, and its validation loss.

    nanoGPT runs its README's command for CPUs, unmodified, between two runs of ours, which use the
    CPU as well. All run to their end, and both models are evaluated on the whole validation split.
    """
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.text import prepare
    from nanogpt_cli.text.tokens import open_data

    sets = ["train.device=cpu", *(sets or [])]  # nanoGPT's command uses the CPU
    chosen = recipe_files.load(recipe, sets).recipe
    if against is not None:
        turns.script_of(against)
    data = prepare.ensure(chosen.data.model_dump(), report=console.say)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="nanogpt-bench-") as name:
        folder = Path(name)
        laps = [_ours(recipe, chosen, sets, folder / "first")]
        if against is not None:
            laps.append(_nanogpt(against.absolute(), data, open_data(data), folder))
            laps.append(_ours(recipe, chosen, sets, folder / "second"))
    result = _result(laps, target, load)
    if not as_json:
        _show(result)
    history.finish("race", result, out, as_json=as_json)
    console.next_command(shell.command("train", recipe, *shell.settings(sets)))


def _ours(name: str, recipe: Recipe, sets: list[str], folder: Path) -> Lap:
    """Run ``nanogpt train``, which evaluates the whole validation split."""
    command = [sys.executable, "-m", "nanogpt_cli", "train", name, "--out", str(folder)]
    command += [word for setting in sets for word in ("--set", setting)]
    seconds, cpu = _timed("nanogpt train", command, Path.cwd(), dict(os.environ))
    log = next(folder.glob("*/events.jsonl")).read_text(encoding="utf-8")
    losses = [event["val_loss"] for event in map(json.loads, log.splitlines())
              if event["type"] == "eval"]  # fmt: skip
    tokens = recipe.train.max_steps * recipe.tokens_per_step
    return Lap("nanogpt train", seconds, cpu, tokens, min(losses))


def _nanogpt(checkout: Path, data: Path, tokens: TokenData, folder: Path) -> Lap:
    """Run nanoGPT's command on the same tokens and evaluate its checkpoint."""
    from nanogpt_cli.interop import nanogpt

    script = turns.script_of(checkout)
    dataset = turns.dataset(folder, data, tokens.vocab_size)
    end = folder / "nanogpt-out"
    command = [sys.executable, str(script), *NANOGPT_ARGUMENTS]
    command += [f"--dataset={dataset}", f"--out_dir={end}"]
    seconds, cpu = _timed("nanoGPT", command, checkout, turns.shell_environment())
    loss = _loss(nanogpt.read(end / "ckpt.pt").model, tokens)
    return Lap("nanoGPT", seconds, cpu, _THEIR_TOKENS, loss)


def _loss(model: GPT, tokens: TokenData) -> float:
    """Loss over the whole validation split, in float32."""
    from nanogpt_cli import recipe as recipes
    from nanogpt_cli.machine import device
    from nanogpt_cli.training import evaluate

    where = device.choose(recipes.Train(device="cpu", precision="fp32", compile=False))
    return evaluate.evaluate(model, tokens.val, where).loss


def _timed(name: str, command: list[str], cwd: Path, env: dict[str, str]) -> tuple[float, float]:
    """Run a command; returns its wall-clock and CPU seconds.

    Raises:
        UserError: the command failed.
    """
    console.say(f"{name}: running")
    with tempfile.TemporaryFile() as log:
        before, started = os.times(), time.perf_counter()
        done = subprocess.run(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
        )
        seconds, after = time.perf_counter() - started, os.times()
        if done.returncode:
            log.seek(0)
            last = log.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            raise UserError(f"{name} failed", *last)
    cpu = sum(getattr(after, part) - getattr(before, part)
              for part in ("children_user", "children_system"))  # fmt: skip
    console.say(f"{name}: {seconds:.1f} s")
    return seconds, cpu


def _result(laps: list[Lap], target: float, load: float) -> dict[str, Any]:
    ours = [lap.seconds for lap in laps if lap.name != "nanoGPT"]
    theirs = [lap.seconds for lap in laps if lap.name == "nanoGPT"]
    return {
        "laps": [asdict(lap) | {"reached": lap.val_loss <= target} for lap in laps],
        "target": target,
        "ratio": sum(ours) / len(ours) / theirs[0] if theirs else None,
        "load": load,
    }


def _show(result: dict[str, Any]) -> None:
    table = console.simple_table(
        f"to validation loss {result['target']:g}",
        ("", "seconds", "CPU seconds", "tokens", "val loss", ""),
    )
    for lap in result["laps"]:
        table.add_row(
            lap["name"], f"{lap['seconds']:.1f}", f"{lap['cpu_seconds']:.1f}",
            console.count(lap["tokens"]), f"{lap['val_loss']:.4f}",
            "✓" if lap["reached"] else "not reached",
        )  # fmt: skip
    show = console.stdout()
    show.print(table)
    if result["ratio"]:
        show.print(
            f"{result['ratio']:.3f} of nanoGPT's time to its end; load {result['load']:.1f} on "
            f"{os.cpu_count()} CPUs at the start"
        )
