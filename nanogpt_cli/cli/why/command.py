"""``nanogpt why``: from "the loss jumped" to the cause and to what to type."""

from __future__ import annotations

from typing import Annotated

import typer

from nanogpt_cli import user_input
from nanogpt_cli.cli import console, options
from nanogpt_cli.cli.runs import named_runs
from nanogpt_cli.places import RUNS


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(why)


def why(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="A run's name or folder; the newest by default.")
    ] = "",
    step: Annotated[
        int | None,
        typer.Argument(
            metavar="[STEP]",
            min=1,
            help="The step to explain; by default the run's incident, else its worst spike.",
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option("--budget", metavar="TIME", help="For replay and trials: 90s, 2m, 1h."),
    ] = "2m",
    out: options.RunsFolder = RUNS,
    as_json: options.AsJson = False,
) -> None:
    """Explain why a run's loss jumped: what left its band first, and which change cures it.

    Reads the log, makes the steps up to the event again from the nearest checkpoint, and tries
    changes one by one from there: the step's data left out, float32, a lower learning rate, and
    others. Nothing in the run's folder is changed.

    Examples:
      nanogpt why
      nanogpt why small 97 --budget 10m
    """
    from nanogpt_cli import foreign_files
    from nanogpt_cli.cli.why import as_json as why_json
    from nanogpt_cli.cli.why import page
    from nanogpt_cli.errors import UserError
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.text.tokens import TokenData, open_data
    from nanogpt_cli.training import progress
    from nanogpt_cli.training.causes.diagnosis import diagnose

    seconds = user_input.seconds(budget, "--budget")
    folder, *others = named_runs.find([run] if run else [], out).runs
    if others:  # of event files
        console.say(f"explaining {folder.name}, the newest of {len(others) + 1} runs in {run}")

    def tokens() -> TokenData:
        if not foreign_files.present(folder.recipe):
            raise UserError("there is no recipe.toml in its folder, as in one of another program")
        wanted = recipe_files.load_resolved(folder.recipe).data.model_dump(mode="json")
        return open_data(progress.data_folder(progress.newest_state(folder), wanted, console.say))

    found = diagnose(folder, tokens, step=step or 0, budget=seconds, report=console.say)
    if as_json:
        console.emit_json(why_json.to_json(found))
    else:
        page.show(found)
    console.next_command(page.next_command(found))
