"""``nanogpt recipe``: show a recipe and the origin of each value, check, compare and write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nanogpt_cli import shell
from nanogpt_cli.cli import console, options, recipe_write
from nanogpt_cli.cli.train import jobs
from nanogpt_cli.errors import UserError
from nanogpt_cli.run.folder import find_run

group = typer.Typer(help="Show, check, compare and write recipes.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="RECIPE", help="A file, or a shipped recipe's name.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="recipe")


@group.command()
def show(recipe: Name, sets: options.Sets = None, as_json: options.AsJson = False) -> None:
    """Print every key with its value and the origin of that value."""
    from nanogpt_cli.recipe import files as recipe_files

    loaded = recipe_files.load(recipe, sets or [])
    origins = loaded.origins
    scheme = origins.get("init", "default")  # all of the table [init] was given at one place
    rows = [
        (
            section,
            key,
            value,
            scheme if section == "init" else origins.get(f"{section}.{key}", "default"),
        )
        for section, content in loaded.recipe.model_dump(mode="json").items()
        for key, value in content.items()
    ]
    if as_json:
        values = {f"{s}.{k}": {"value": v, "from": o} for s, k, v, o in rows}
        console.emit_json({"recipe": recipe, "values": values})
    else:
        _show(rows)
    console.next_command(shell.command("train", recipe, *shell.settings(sets)))


def _show(rows: list[tuple[str, str, Any, str]]) -> None:
    cells = [(f"{section}.{key}", repr(value), origin) for section, key, value, origin in rows]
    table = console.fitting(("key", "value", "from"), cells, shorten=("from", "value"))
    for row, (*_, origin) in zip(table.rows, rows, strict=True):
        row.style = "dim" if origin == "default" else None
    console.print_table(table)


@group.command()
def check(
    recipe: Name,
    sets: options.Sets = None,
    processes: options.Processes = 1,
    as_json: options.AsJson = False,
) -> None:
    """Check whether train would accept a recipe; if not, list every reason (exit code 2)."""
    from nanogpt_cli.model import homes
    from nanogpt_cli.recipe import files as recipe_files

    loaded = recipe_files.load(recipe, sets or [])
    jobs.check(loaded)
    asked = jobs.Request(recipe, tuple(sets or ()), processes=processes)
    jobs.check_processes(loaded.recipe, asked)
    notes = [*loaded.notes, *jobs.check_data(loaded.recipe, processes)]
    if as_json:
        keys = sorted(loaded.origins)
        facts = {"keys_set": keys, "home": homes.home(loaded.recipe.model), "notes": notes}
        console.emit_json({"recipe": recipe, "valid": True, **facts})
    else:
        typer.echo(f"{recipe} is valid: {len(loaded.origins)} keys set, the rest are defaults")
        typer.echo(f"architecture: {homes.describe(loaded.recipe.model)}")
        for note in notes:
            console.say(note)
    console.next_command(shell.command(*asked.words()))


@group.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A recipe or a run.")],
    second: Annotated[str, typer.Argument(metavar="B", help="A recipe or a run.")],
    as_json: options.AsJson = False,
) -> None:
    """Print the keys that differ between two recipes, or a recipe and a run."""
    values = [_values(name) for name in (first, second)]
    keys = [key for key in values[0] if values[0][key] != values[1].get(key)]
    rows = {key: [v.get(key) for v in values] for key in keys}
    if as_json:
        console.emit_json({"recipes": [first, second], "values": rows})
    elif rows:
        shown = {key: [repr(value) for value in pair] for key, pair in rows.items()}
        console.side_by_side([first, second], shown)
    else:
        typer.echo("no difference")
    console.next_command(shell.command("recipe", "show", first))


@group.command()
def schema() -> None:
    """Print the JSON schema of recipes, which editors find by "#:schema FILE" in a first line."""

    from nanogpt_cli.recipe import writing

    typer.echo(json.dumps(writing.schema(), indent=2))
    console.say(f"this schema is also in {writing.schema_file()}")
    console.next_command("nanogpt recipe new")


group.command()(recipe_write.new)
# Unknown options are nanoGPT's flags and are passed on as arguments.
group.command("from-nanogpt", context_settings={"ignore_unknown_options": True})(
    recipe_write.from_nanogpt
)


def _values(name: str) -> dict[str, Any]:
    """The resolved values of a recipe or a run, by ``section.key``."""
    from nanogpt_cli.recipe import files as recipe_files

    try:
        recipe = recipe_files.load(name).recipe
    except UserError:
        if Path(name).suffix == ".toml":
            raise
        recipe = recipe_files.load_resolved(find_run(name).own_recipe())
    return {
        f"{section}.{key}": value
        for section, content in recipe.model_dump(mode="json").items()
        for key, value in content.items()
    }
