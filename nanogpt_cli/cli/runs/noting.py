"""``nanogpt runs note`` and ``nanogpt runs tag``: what its user says of a run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from nanogpt_cli import shell
from nanogpt_cli.cli import console, options
from nanogpt_cli.errors import UserError
from nanogpt_cli.places import RUNS
from nanogpt_cli.printable import printable
from nanogpt_cli.run import notes
from nanogpt_cli.run.folder import RunFolder, find_run


def note(
    run: Annotated[str, typer.Argument(help="Run name or folder.")],
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help='One line; "" removes the note.')
    ] = None,
    out: options.RunsFolder = RUNS,
    as_json: options.AsJson = False,
) -> None:
    """Keep a note in the run's folder, or print the one that is there.

    Examples:
      nanogpt runs note small "warm start, new data"
      nanogpt runs note small
    """
    found = find_run(run, out)
    said = _read(found) if text is None else notes.change(found, note=text)
    if as_json:
        _print_json(found, said)
    elif text is None:
        console.write(sys.stdout, f"{printable(said.note, '')}\n" if said.note else "")
    else:
        console.say(f"{found.name}: {said.note}" if said.note else f"{found.name}: no note")
    console.next_command(shell.command("watch", found.path))


def tag(
    run: Annotated[str, typer.Argument(help="Run name or folder.")],
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="TAG", help="Tags to add; +TAG is the same.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="TAG", help="Tag to remove; repeatable.")
    ] = None,
    out: options.RunsFolder = RUNS,
    as_json: options.AsJson = False,
) -> None:
    """Tag a run, or print its tags; `nanogpt runs --filter tag:NAME` lists those that have one.

    Examples:
      nanogpt runs tag small baseline seed-2
      nanogpt runs tag small good --remove try
    """
    found = find_run(run, out)
    said = _read(found)
    add = [word.removeprefix("+") for word in tags or ()]
    if add or remove:
        said = notes.change(found, tags=notes.changed_tags(said.tags, add, remove or ()))
    if as_json:
        _print_json(found, said)
    elif add or remove:
        console.say(f"{found.name}: {' '.join(said.tags) or 'no tags'}")
    else:
        console.write(sys.stdout, "".join(f"{word}\n" for word in said.tags))
    first = said.tags[0] if said.tags else ""
    listed = ("runs", "--filter", f"tag:{first}") if first else ("runs",)
    console.next_command(shell.command(*listed, *(() if out == RUNS else ("--out", out))))


def _read(run: RunFolder) -> notes.Notes:
    """The notes of a run.

    Raises:
        UserError: their file cannot be read.
    """
    found = notes.read(run)
    if found.problem:
        raise UserError(found.problem, "move that file away: notes and tags are stored there")
    return found


def _print_json(run: RunFolder, said: notes.Notes) -> None:
    values = {"run": run.name, "folder": str(run.path)}
    console.emit_json(values | {"note": said.note, "tags": list(said.tags)})
