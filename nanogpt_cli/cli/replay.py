"""``nanogpt replay``: repeat one step of a run to find the first tensor that is not finite."""

from __future__ import annotations

from typing import Annotated

import typer

from nanogpt_cli import shell
from nanogpt_cli.cli import console, options
from nanogpt_cli.errors import UserError
from nanogpt_cli.places import RUNS
from nanogpt_cli.run.folder import find_run


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(replay)


def replay(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="A run's name or folder; the newest by default.")
    ] = "",
    step: Annotated[
        int,
        typer.Argument(
            metavar="[STEP]", help="The step to repeat; that of the last incident by default."
        ),
    ] = 0,
    out: options.RunsFolder = RUNS,
    as_json: options.AsJson = False,
) -> None:
    """Repeat one step in several ways: as the run did, in fp32, and so on.

    Reports the first tensor that is not finite, and which change cures it. Exit code 1 means that
    the step is not finite when computed as the run did.
    """
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.text.tokens import open_data
    from nanogpt_cli.training import progress
    from nanogpt_cli.training.studies import replay as core

    folder = find_run(run or None, out)
    known = core.known_steps(folder.incidents)
    if not step and not known:
        raise UserError(
            f"run {folder.name} has no incident",
            f"name a step after it, for example the first: {shell.hint('replay', folder.path, 1)}",
        )
    step = step or known[-1]
    wanted = recipe_files.load_resolved(folder.own_recipe()).data.model_dump(mode="json")
    data = progress.data_folder(core.saved(folder, step), wanted, console.say)
    found = core.replay(folder, open_data(data), step, console.say)
    if as_json:
        console.emit_json(core.to_json(found))
    else:
        typer.echo(f"step {found.step}, weights from {found.source}")
        for made in found.passes:
            broke = made.forward or made.backward or "all finite"
            typer.echo(
                f"  {made.way:24} loss {made.loss:<12.6g} gradient {made.grad_norm:<12.6g} "
                f"largest value {made.largest:<10.4g} {broke}"
            )
        typer.echo(found.verdict)
    console.next_command(shell.command("watch", folder.path))
    if not found.passes[0].finite:
        raise typer.Exit(1)
