"""``nanogpt cache``: list the cache's contents, and clear it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nanogpt_cli import caches, places, units
from nanogpt_cli.cli import console, options
from nanogpt_cli.cli.prepare_view import short_path
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.caches import Entry

group = typer.Typer(
    help="List and clear fetched files, prepared data, copies of remote runs.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="cache")


@group.command("list")
def list_(as_json: options.AsJson = False) -> None:
    """List what is in the cache, with sizes."""
    found = caches.entries()
    total = sum(entry.bytes for entry in found)
    if as_json:
        rows = [{**vars(entry), "path": str(entry.path)} for entry in found]
        console.emit_json({"cache": str(places.cache_home()), "bytes": total, "entries": rows})
    else:
        _show(found, total)
    console.next_command("nanogpt cache clear data" if found else "nanogpt prepare shakespeare")


def _show(found: list[Entry], total: int) -> None:
    from rich import box
    from rich.table import Table

    console.say(f"{short_path(places.cache_home())}: {units.decimal_size(total)}")

    table = Table("kind", "name", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("size", justify="right")
    for entry in found:
        table.add_row(entry.kind, entry.name, units.decimal_size(entry.bytes))
    if found:
        console.stdout().print(table)


@group.command()
def clear(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Names from the list, or assets, data, mirrors, other; all by default.",
        ),
    ] = None,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Delete fetched files, prepared data and copies; commands that need them make them again.

    Runs and ./data are not in the cache and stay. A run whose text has changed since needs the set
    that it was trained on.
    """
    doomed = caches.select(names or [])
    total = sum(entry.bytes for entry in doomed)
    if doomed and not yes:
        if not sys.stdin.isatty():
            raise UserError(
                f"{len(doomed)} entries, {units.decimal_size(total)}, would be deleted",
                "confirm with --yes",
            )
        for entry in doomed:
            console.say(f"  {entry.kind}  {entry.name}  {units.decimal_size(entry.bytes)}")
        if not typer.confirm(f"delete these, {units.decimal_size(total)}?", err=True):
            console.say("nothing deleted")
            return
    for entry in doomed:
        caches.remove(entry)
    if as_json:
        console.emit_json({"deleted": [entry.name for entry in doomed], "bytes": total})
    else:
        console.say(f"{len(doomed)} deleted, {units.decimal_size(total)} freed")
    console.next_command("nanogpt cache list")
