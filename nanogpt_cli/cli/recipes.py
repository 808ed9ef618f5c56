"""``nanogpt recipes``: list the shipped recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from nanogpt_cli.cli import console, options

if TYPE_CHECKING:
    from nanogpt_cli.recipe.files import Header


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(recipes)


def recipes(
    as_json: options.AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
) -> None:
    """List the shipped recipes: what they train, on which machine, how long, to which loss."""
    from nanogpt_cli.recipe import files as recipe_files

    headers = recipe_files.shipped()
    if as_json:
        rows = [{k: str(v) for k, v in vars(header).items()} for header in headers]
        console.emit_json({"recipes": rows})
    elif as_markdown:
        typer.echo(markdown(headers))
    else:
        _show(headers)
    console.next_command("nanogpt train small")


def _show(headers: Sequence[Header]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    for title in ("what", "machine", "minutes", "loss"):
        table.add_column(title, justify="right" if title == "minutes" else "left")
    for header in headers:
        table.add_row(header.name, header.what, header.machine, header.minutes, header.loss)
    console.stdout().print(table)


def markdown(headers: Sequence[Header]) -> str:
    """The table of ``docs/recipes.md``."""
    rows = ["| Recipe | What | Machine | Minutes | Loss |", "|---|---|---|---|---|"]
    rows += [f"| `{h.name}` | {h.what} | {h.machine} | {h.minutes} | {h.loss} |" for h in headers]
    return "\n".join(rows)
