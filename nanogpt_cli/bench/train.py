"""``nanogpt bench train``: compare training speed with nanoGPT's loop; cost by size."""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli import shell
from nanogpt_cli.bench import growth as bench_growth
from nanogpt_cli.bench import history
from nanogpt_cli.bench import turns as bench_turns
from nanogpt_cli.cli import console, options
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.bench.turns import Loop
    from nanogpt_cli.machine.device import Device
    from nanogpt_cli.recipe import Recipe


def register(group: typer.Typer) -> None:
    """Add ``train`` to the group of benchmarks."""
    group.command(name="train")(bench_train)


def bench_train(
    recipe: Annotated[
        str, typer.Option("--recipe", help="Shapes, batch and data: a recipe's name or file.")
    ] = "small",
    sets: options.Sets = None,
    against: options.NanoGPT = None,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each loop.")] = 6,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn.")] = 5.0,
    growth: Annotated[
        bool, typer.Option("--growth", help="Instead: cost by context, depth, batch and size.")
    ] = False,
    out: history.History = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure training: steps per second, in turns with nanoGPT's unmodified loop.

    Both loops run in separate processes with the same shapes, tokens, optimizer (AdamW unless --set
    says otherwise) and machine; while one has its turn, the other is stopped.
    """
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.text import prepare

    chosen = recipe_files.load(recipe, ['optim.name="adamw"', *(sets or [])]).recipe
    if growth:
        grown = bench_growth.run(chosen)
        if not as_json:
            bench_growth.show(grown["growth"], chosen)
        history.finish("growth", grown, out, as_json=as_json)
        console.next_command(
            shell.command("bench", "train", "--recipe", recipe, *shell.settings(sets))
        )
        return
    data = prepare.ensure(chosen.data.model_dump(), report=console.say)
    result = _measure(chosen, data, against, turns, seconds)
    if not as_json:
        _show(result)
    history.finish("train", result, out, as_json=as_json)
    console.next_command(shell.command("train", recipe, *shell.settings(sets)))


@dataclass(frozen=True)
class Pace:
    """Step times of one loop.

    Attributes:
        name: name of the loop.
        turns: step times of each turn, in seconds.
    """

    name: str
    turns: list[list[float]]

    @property
    def step_s(self) -> float:
        """Median time of all steps, in seconds."""
        return statistics.median(took for turn in self.turns for took in turn)

    def facts(self, tokens_per_step: int) -> dict[str, Any]:
        """Median, spread and the medians of the turns, for JSON."""
        steps = sorted(took for turn in self.turns for took in turn)
        return {
            "name": self.name,
            "step_s": self.step_s,
            "step_s_p10": steps[len(steps) // 10],
            "step_s_p90": steps[len(steps) * 9 // 10],
            "steps": len(steps),
            "steps_per_s": 1 / self.step_s,
            "tokens_per_s": tokens_per_step / self.step_s,
            "turn_medians_s": [statistics.median(turn) for turn in self.turns if turn],
        }


def _measure(
    recipe: Recipe, data: Path, against: Path | None, turns: int, seconds: float
) -> dict[str, Any]:
    """Measure both loops in turns, the machine's matmul speed, and the share of data loading."""
    from nanogpt_cli.machine import device
    from nanogpt_cli.text.tokens import open_data
    from nanogpt_cli.training import spec
    from nanogpt_cli.training.studies import growth

    _check(recipe, against)
    tokens = open_data(data)
    chosen = device.choose(recipe.train)
    rows = spec.model_config(recipe, tokens.vocab_size).vocab_size
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="nanogpt-bench-") as name:
        folder = Path(name)
        with bench_turns.ours(recipe, data, folder) as mine:
            console.say(f"{mine.name}: warming up")
            mine.warm_up()
            paces = []
            if against is None:
                paces = _turns([mine], turns, seconds)
            else:
                settings = _settings(chosen)
                with bench_turns.nanogpt(
                    against.absolute(), recipe, data, rows, folder, settings
                ) as theirs:
                    console.say(f"{theirs.name}: warming up")
                    theirs.warm_up()
                    paces = _turns([mine, theirs], turns, seconds)
            started = mine.started
    facts = [pace.facts(recipe.tokens_per_step) for pace in paces]
    flops = started["flops_per_token"]
    return {
        "shape": recipe.model.model_dump(mode="json"),
        "batch": [recipe.tokens_per_step // recipe.model.block_size, recipe.model.block_size],
        "optimizer": recipe.optim.name,
        "parameters": started["parameters"],
        "device": started["device"],
        "precision": started["precision"],
        "notes": started["notes"],
        "load": load,
        "loops": facts,
        "ratio": facts[1]["step_s"] / facts[0]["step_s"] if len(facts) > 1 else None,
        "turn_ratios": _turn_ratios(paces),
        "flops_per_s": facts[0]["tokens_per_s"] * flops,
        "peak_flops": started["peak_flops"],
        "matmul_flops": None if started["peak_flops"] else _ceiling(chosen),
        "data_share": growth.data_seconds(recipe, tokens) / facts[0]["step_s"],
    }  # fmt: skip


def _ceiling(chosen: Device) -> float:
    """FLOP/s of a large matmul on the device in its number format."""
    import torch

    from nanogpt_cli.machine import capabilities

    formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = formats.get(chosen.precision, torch.float32)
    return capabilities.matmul_tflops(chosen.device, dtype) * 1e12


def _check(recipe: Recipe, against: Path | None) -> None:
    from nanogpt_cli.model import homes

    if not hasattr(signal, "SIGSTOP"):
        raise UserError("bench train stops and continues processes, which this system cannot do")
    model = recipe.model
    plain = homes.home(model) == "gpt2" and model.activation == "gelu" and model.tied
    if against is not None and not plain:
        raise UserError(
            "nanoGPT has no model of this architecture", "it needs gelu and a tied head"
        )
    if against is not None and recipe.optim.name != "adamw":
        console.say(f"nanoGPT trains with AdamW, this recipe with {recipe.optim.name}")


def _settings(chosen: Device) -> list[str]:
    """nanoGPT's arguments for the same device, number format and compilation as ours."""
    kind = {"bf16": "bfloat16", "fp16": "float16"}.get(chosen.precision, "float32")
    if chosen.device.type == "cpu" and kind != "float32":
        console.say("nanoGPT always computes in float32 on CPUs")
    return [f"--device={chosen.device.type}", f"--dtype={kind}", f"--compile={chosen.compile}"]


def _turns(loops: list[Loop], turns: int, seconds: float) -> list[Pace]:
    """Run the loops in the order A/B/B/A, so that a drift of the machine affects both alike."""
    found: dict[str, list[list[float]]] = {loop.name: [] for loop in loops}
    for number in range(turns):
        console.say(f"turn {number + 1} of {turns}")
        for loop in loops if number % 2 == 0 else reversed(loops):
            length = seconds
            for _ in range(4):  # until the turn is long enough for some whole steps
                steps = loop.turn(length)
                if len(steps) >= 2:
                    break
                length *= 3
            if not steps:
                raise UserError(
                    f"no step of {loop.name} fits a turn of {length:g} s", "raise --seconds"
                )
            found[loop.name].append(steps)
    return [Pace(loop.name, found[loop.name]) for loop in loops]


def _turn_ratios(paces: list[Pace]) -> list[float]:
    """Speed-up of the first loop over the second, turn by turn."""
    if len(paces) < 2:
        return []
    middle = statistics.median
    return [middle(b) / middle(a) for a, b in zip(paces[0].turns, paces[1].turns, strict=True)]


def _show(result: dict[str, Any]) -> None:
    batch, T = result["batch"]
    title = (
        f"{console.count(result['parameters'])} parameters, {batch} × {T} tokens a step, "
        f"{result['optimizer']}, {result['precision']} on {result['device']}"
    )
    table = console.simple_table(title, ("", "ms a step", "10 % to 90 %", "tokens/s", "speed-up"))
    first = result["loops"][0]["step_s"]
    for row in result["loops"]:
        table.add_row(
            row["name"], f"{1e3 * row['step_s']:,.1f}",
            f"{1e3 * row['step_s_p10']:,.1f} to {1e3 * row['step_s_p90']:,.1f}",
            console.count(row["tokens_per_s"]), f"{row['step_s'] / first:.2f}",
        )  # fmt: skip
    show = console.stdout()
    show.print(table)
    if result["turn_ratios"]:
        low, high = min(result["turn_ratios"]), max(result["turn_ratios"])
        show.print(f"speed-up {result['ratio']:.2f}, turn by turn {low:.2f} to {high:.2f}")
    reached = result["flops_per_s"]
    if result["peak_flops"]:
        show.print(f"{reached / 1e12:.1f} TFLOP/s, MFU {reached / result['peak_flops']:.1%}")
    else:
        show.print(
            f"{reached / 1e9:,.0f} GFLOP/s by 6N + 12LdT; a large matmul reaches "
            f"{result['matmul_flops'] / 1e9:,.0f} here ({reached / result['matmul_flops']:.0%}). "
            "There is no MFU, because the device's peak is unknown"
        )
    show.print(
        f"fetching the data takes {result['data_share']:.2%} of a step; load {result['load']:.1f} "
        f"on {os.cpu_count()} CPUs at the start"
    )
