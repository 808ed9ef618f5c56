"""``nanogpt verify-resume``: check for one recipe that stopping and resuming is bit-exact."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nanogpt_cli import shell
from nanogpt_cli.cli import console, options
from nanogpt_cli.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify-resume")(verify_resume)


def verify_resume(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file or name.")],
    sets: options.Sets = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Steps of both runs.")] = 20,
    stop: Annotated[
        int, typer.Option("--stop-at", metavar="STEP", help="Step of the stop; 0: halfway.", min=0)
    ] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Train twice, once with a stop and a resume, and compare every tensor and loss bit by bit.

    Exit code 1 names the first tensor that differs.
    """

    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.text import prepare
    from nanogpt_cli.text.tokens import open_data
    from nanogpt_cli.training.studies import verify_resume as core

    loaded = recipe_files.load(recipe, list(sets or [])).recipe
    stop = stop or steps // 2
    if stop >= steps:
        raise UserError(f"--stop-at {stop} must be less than --steps {steps}")
    prepared = prepare.ensure(loaded.data.model_dump(), report=console.say)
    with tempfile.TemporaryDirectory(prefix="nanogpt-verify-") as folder:
        verdict = core.check(
            loaded, open_data(prepared), Path(folder), steps=steps, stop=stop, report=console.say
        )
    if as_json:
        console.emit_json({"recipe": recipe, "equal": not verdict.differing, **asdict(verdict)})
    elif verdict.differing:
        typer.echo(f"differs: {verdict.differing}")
    else:
        typer.echo(
            f"equal: {verdict.tensors} tensors, {verdict.losses} losses and "
            f"{verdict.evaluations} evaluations, bit by bit, "
            f"stopped after step {verdict.stopped} of {verdict.steps}"
        )
    console.next_command(shell.command("train", recipe, *shell.settings(sets)))
    if verdict.differing:
        raise typer.Exit(1)
