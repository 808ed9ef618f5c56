"""``nanogpt plan``: forecast the memory, time and disk space that a recipe will need."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from nanogpt_cli import shell
from nanogpt_cli.cli import console, options
from nanogpt_cli.errors import UserError
from nanogpt_cli.places import RUNS

if TYPE_CHECKING:
    from nanogpt_cli.recipe import Recipe
    from nanogpt_cli.training.plan import Forecast


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(plan)


def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file or name.")],
    sets: options.Sets = None,
    processes: options.Processes = 1,
    flops: Annotated[
        float,
        typer.Option(
            "--flops", min=0, help="FLOP/s of one process; 0: measure for 3 s on this machine."
        ),
    ] = 0.0,
    available: Annotated[
        float,
        typer.Option("--memory", min=0, help="Memory in GB to plan for; 0: what is free now."),
    ] = 0.0,
    out: options.RunsFolder = RUNS,
    as_json: options.AsJson = False,
) -> None:
    """Forecast memory by component, work, time and disk; exit code 1 if it cannot fit."""

    from nanogpt_cli.machine import device as devices
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.recipe import shares
    from nanogpt_cli.training import plan as core
    from nanogpt_cli.training import spec

    loaded = recipe_files.load(recipe, list(sets or [])).recipe
    shares.check(loaded, processes)
    vocab_size, tokens = _sizes(loaded)
    device = devices.choose(loaded.train)
    found = core.forecast(loaded, vocab_size, tokens, device, processes=processes, folder=out)
    config = spec.model_config(loaded, vocab_size)
    if available:
        room = int(available * 1e9)
        largest = core.largest_micro_batch(
            loaded.for_processes(processes), config, device, room, processes
        )
        found = replace(found, available=room, largest_micro_batch=largest)
    if found.fits:
        rate = flops or core.speed(loaded, config, device)
        found = replace(
            found,
            flops_per_second=rate * processes,
            seconds=found.flops / rate / processes,
        )
    if as_json:
        console.emit_json({"recipe": recipe, **found.to_json()})
    else:
        _show(found, device.name, device.precision)
    cuda = device.device.type == "cuda"
    for note in shares.notes(loaded, processes, vocab_size=config.vocab_size, cuda=cuda):
        console.say(note)
    if not found.fits:
        console.say(_refusal(found))
        console.next_command("nanogpt recipes")
        raise typer.Exit(1)
    more = ["--procs", processes] if processes > 1 else []
    more += [] if out == RUNS else ["--out", out]
    console.next_command(shell.command("train", recipe, *shell.settings(sets), *more))


def _sizes(recipe: Recipe) -> tuple[int, int]:
    """Size of the vocabulary and number of training tokens.

    A large set of the hub is not downloaded for this; its published size is used.
    """
    from nanogpt_cli.text import catalogue, prepare
    from nanogpt_cli.text.tokens import open_data

    section = recipe.data
    name = section.name if isinstance(section.name, str) else ""
    published = catalogue.published_size(name, section.tokenizer)
    if published:
        try:
            folder = prepare.find(name, section.tokenizer)
        except UserError:
            console.say(f"{name} is not prepared yet: planned by its published size")
            return published[0], round(published[1] * (1 - section.val_fraction))
    else:
        folder = prepare.ensure(section.model_dump(), report=console.say)
    data = open_data(folder)
    return data.vocab_size, len(data.train)


def _show(found: Forecast, device: str, precision: str) -> None:
    memory = found.memory
    count = console.count
    rows = [
        ("parameters", count(found.parameters)),
        ("FLOPs per token", count(found.flops_per_token)),
        ("tokens", f"{count(found.tokens)} ({found.epochs:.2g} epochs)"),
        (f"memory ({device}, {precision})", ""),
        ("  weights", _bytes(memory.weights)),
        ("  gradients", _bytes(memory.gradients)),
        ("  moments", _bytes(memory.moments)),
        ("  activations", _bytes(memory.activations)),
        ("  backward pass", _bytes(memory.backward)),
        ("  update", _bytes(memory.update)),
        ("  evaluation", _bytes(memory.evaluation)),
        ("  program", _bytes(memory.program)),
        ("  peak", f"{_bytes(memory.peak)} of {_bytes(found.available)} free"),
        ("largest micro-batch", str(found.largest_micro_batch)),
        ("disk", f"{_bytes(found.disk_bytes)} of {_bytes(found.disk_free)} free"),
    ]
    if found.seconds is not None and found.flops_per_second is not None:
        rows.append(
            ("time", f"{console.duration(found.seconds)} at {count(found.flops_per_second)} FLOP/s")
        )
    for name, value in rows:
        typer.echo(f"{name:24}{value}".rstrip())


def _bytes(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def _refusal(found: Forecast) -> str:
    if found.disk_bytes > found.disk_free:
        return "does not fit: the disk is too small for the checkpoints; lower train.keep"
    if found.largest_micro_batch:
        return f"does not fit: set train.batch_size = {found.largest_micro_batch}"
    return "does not fit even with one sequence at a time: use a smaller model or block_size"
