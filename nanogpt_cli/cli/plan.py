"""``nanogpt plan``: forecast the memory, time and disk space that a recipe will need."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from nanogpt_cli import shell, units
from nanogpt_cli.cli import console, options
from nanogpt_cli.errors import UserError
from nanogpt_cli.places import RUNS

if TYPE_CHECKING:
    from nanogpt_cli.recipe import Recipe
    from nanogpt_cli.training.forecasts.plan import Forecast
    from nanogpt_cli.training.forecasts.roofline import Estimate


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
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu",
            metavar="NAME",
            help="Estimate for this GPU instead, such as H200; --gpus says how many.",
        ),
    ] = "",
    available: Annotated[
        float,
        typer.Option("--memory", min=0, help="Memory in GB to plan for; 0: what is free now."),
    ] = 0.0,
    out: options.RunsFolder = RUNS,
    as_json: options.AsJson = False,
) -> None:
    """Forecast memory by component, work, time and disk; exit code 1 if it cannot fit."""

    from nanogpt_cli.machine import device as devices
    from nanogpt_cli.machine import gpus
    from nanogpt_cli.model import homes
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.recipe import shares
    from nanogpt_cli.training import spec
    from nanogpt_cli.training.forecasts import plan as core
    from nanogpt_cli.training.forecasts import roofline

    loaded = recipe_files.load(recipe, list(sets or [])).recipe
    if gpu and flops:
        raise UserError(
            "--gpu estimates the speed that --flops would give", "leave one of them out"
        )
    card = gpus.find(gpu) if gpu else None
    shares.check(loaded, processes)
    vocab_size, tokens = _sizes(loaded)
    device = card.device() if card else devices.choose(loaded.train)
    room = int(available * 1e9) or (int(card.memory) if card else 0)
    found = core.forecast(
        loaded, vocab_size, tokens, device, processes=processes, folder=out, available=room
    )
    config = spec.model_config(loaded, vocab_size)
    guess = None
    if found.fits:
        if card:
            shared = loaded.for_processes(processes)
            guess = roofline.estimate(shared, config, card, processes=processes)
            seconds = guess.step_seconds * loaded.train.max_steps
            rate = found.flops / seconds
        else:
            rate = (flops or core.speed(loaded, config, device)) * processes
            seconds = found.flops / rate
        found = replace(found, flops_per_second=rate, seconds=seconds)
    if as_json:
        estimate = asdict(guess) if guess else None
        facts = {"recipe": recipe, "home": homes.home(config), **found.to_json()}
        console.emit_json({**facts, "estimate": estimate})
    else:
        free = "" if room else " free"
        typer.echo(f"{'architecture':24}{homes.describe(config)}")
        _show(found, device.name, device.precision, free, ", estimated" if guess else "")
        if guess:
            _show_estimate(guess)
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


def _show(found: Forecast, device: str, precision: str, free: str, how: str) -> None:
    memory = found.memory
    count = console.count
    rows = [
        ("parameters", count(found.parameters)),
        ("FLOPs per token", count(found.flops_per_token)),
        ("tokens", f"{count(found.tokens)} ({found.epochs:.2g} epochs)"),
        (f"memory ({device}, {precision})", ""),
        ("  weights", units.decimal_size(memory.weights)),
        ("  gradients", units.decimal_size(memory.gradients)),
        ("  moments", units.decimal_size(memory.moments)),
        ("  activations", units.decimal_size(memory.activations)),
        ("  backward pass", units.decimal_size(memory.backward)),
        ("  update", units.decimal_size(memory.update)),
        ("  evaluation", units.decimal_size(memory.evaluation)),
        ("  program", units.decimal_size(memory.program)),
        (
            "  peak",
            f"{units.decimal_size(memory.peak)} of {units.decimal_size(found.available)}{free}",
        ),
        ("largest micro-batch", str(found.largest_micro_batch)),
        (
            "disk",
            f"{units.decimal_size(found.disk_bytes)} of {units.decimal_size(found.disk_free)} free",
        ),
    ]
    if found.seconds is not None and found.flops_per_second is not None:
        rows.append(
            (
                "time",
                f"{console.duration(found.seconds)} at {count(found.flops_per_second)} FLOP/s{how}",
            )
        )
    for name, value in rows:
        typer.echo(f"{name:24}{value}".rstrip())


def _show_estimate(guess: Estimate) -> None:
    """Where the time of a step goes; nothing of it was measured."""
    print_row = "{:24}{}".format
    each = f"{guess.gpus} × {guess.gpu}" if guess.gpus > 1 else guess.gpu
    typer.echo(f"a step on {each}, estimated")
    for name, part in guess.parts.items():
        share = part.seconds / guess.step_seconds
        typer.echo(print_row(f"  {name}", f"{1000 * part.seconds:9.3f} ms {share:5.1%}"))
    typer.echo(print_row("  step", f"{1000 * guess.step_seconds:9.3f} ms"))
    cost = f"{guess.gpu_hours:.3g} GPU-hours"
    if guess.gpu_hours >= 24:
        cost += f", {guess.gpu_hours / 24:.3g} GPU-days"
    typer.echo(print_row("estimated speed", f"{console.count(guess.tokens_per_s)} tokens/s"))
    typer.echo(print_row("estimated MFU", f"{guess.mfu:.0%}"))
    typer.echo(print_row("estimated cost", cost))


def _refusal(found: Forecast) -> str:
    if not found.largest_micro_batch:
        return "does not fit even with one sequence at a time: use a smaller model or block_size"
    if found.disk_bytes > found.disk_free:
        return "does not fit: the disk is too small for the checkpoints; lower train.keep"
    return f"does not fit: set train.batch_size = {found.largest_micro_batch}"
