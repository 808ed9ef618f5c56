"""``nanogpt runs``: list runs, compare two, draw several, write one as CSV."""

from __future__ import annotations

import datetime
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli import shell, units
from nanogpt_cli.cli import console, named_runs, options, runs_plot
from nanogpt_cli.errors import UserError
from nanogpt_cli.places import RUNS
from nanogpt_cli.run import sinks
from nanogpt_cli.run.folder import find_run, list_runs
from nanogpt_cli.run.follow import EventReader

if TYPE_CHECKING:
    from nanogpt_cli.run.folder import RunFolder

group = typer.Typer(help="List runs, compare two, draw several.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="runs")


@group.callback()
def runs(
    context: typer.Context, out: options.RunsFolder = RUNS, as_json: options.AsJson = False
) -> None:
    """List runs, newest first: state, step, best validation loss."""
    if context.invoked_subcommand:
        return
    rows = [summary(run) for run in list_runs(out)]
    if as_json:
        console.emit_json({"runs": rows})
    elif rows:
        _show(rows)
    else:
        console.say(f"no runs in {out}/")
    first = ("watch", rows[0]["folder"]) if rows else ("train", "small")
    console.next_command(shell.command(*first))


def _show(rows: list[dict[str, Any]]) -> None:
    numbers = ("size", "step", "best val", "loss", "tokens")
    cells = [
        (row["run"], row["state"], console.count(row["parameters"]), _steps(row),
         _loss(row["best_val_loss"]), _loss(row["loss"]), console.count(row["tokens"]), _when(row))
        for row in rows
    ]  # fmt: skip
    table = console.fitting(
        ("run", "state", *numbers, "when"), cells, numbers=numbers,
        spare=("tokens", "size", "when"), shorten=("run",),
    )  # fmt: skip
    console.print_table(table)


group.command()(runs_plot.plot)


@group.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A run.")],
    second: Annotated[str, typer.Argument(metavar="B", help="A run.")],
    out: options.RunsFolder = RUNS,
    as_json: options.AsJson = False,
) -> None:
    """Show the recipe keys that differ between two runs, and their results."""
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.tui.recipes import flat

    found = [find_run(name, out) for name in (first, second)]
    recipes = [recipe_files.load_resolved(r.recipe).model_dump(mode="json") for r in found]
    values = [dict(flat(recipe)) for recipe in recipes]
    keys = [k for k in values[0] | values[1] if values[0].get(k) != values[1].get(k)]
    rows: dict[str, list[Any]] = {key: [v.get(key) for v in values] for key in keys}
    results = [summary(run) for run in found]
    for key in ("state", "step", "tokens", "loss", "best_val_loss"):
        rows[key] = [result[key] for result in results]
    if as_json:
        console.emit_json({"runs": [r.name for r in found], "values": rows})
    else:
        shown = {key: [_cell(key, value) for value in pair] for key, pair in rows.items()}
        console.side_by_side([run.name for run in found], shown)
    console.next_command(shell.command("watch", *(run.path for run in found)))


@group.command("csv")
def csv_(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="The newest by default.")] = "",
    out: options.RunsFolder = RUNS,
) -> None:
    """Write the steps and evaluations of a run to stdout as comma-separated values."""
    chosen = named_runs.find([run] if run else [], out)
    if len(chosen.runs) > 1:
        raise UserError(f"{run} holds {len(chosen.runs)} runs", "name the folder of one of them")
    reader = EventReader(chosen.runs[0].events)
    events = reader.read_all()
    if reader.problem:
        raise UserError(reader.problem)
    sinks.write_csv(iter(events), sys.stdout)
    console.next_command(shell.command("watch", run if chosen.converted else chosen.runs[0].path))


def _steps(row: dict[str, Any]) -> str:
    return f"{row['step']}/{row['max_steps']}" if row["max_steps"] else "-"


def _loss(value: float | str | None) -> str:
    """A loss as a table cell; a summary holds NaN and infinity as strings."""
    return "-" if value is None else units.loss(value) if isinstance(value, float) else value


def _cell(key: str, value: Any) -> str:
    if key in ("loss", "best_val_loss"):
        return _loss(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def summary(run: RunFolder) -> dict[str, Any]:
    """Summary of a run's event log, the same as ``watch --json`` prints."""
    from nanogpt_cli.tui import plain
    from nanogpt_cli.tui.session import RunSession

    session = RunSession(run.path, exact=True)
    session.poll(1 << 22, float("inf"))
    return plain.summary(session)


def _when(row: dict[str, Any]) -> str:
    if not row["time"]:
        return ""
    moment = datetime.datetime.fromtimestamp(row["time"])
    recent = moment.year == datetime.datetime.now().year
    return moment.strftime("%m-%d %H:%M" if recent else "%Y-%m-%d")
