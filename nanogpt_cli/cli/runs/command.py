"""``nanogpt runs``: list runs, note and tag them, compare two, draw several, write one as CSV."""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli import shell, units
from nanogpt_cli.cli import console, options
from nanogpt_cli.cli.runs import named_runs, noting, plotting
from nanogpt_cli.errors import UserError
from nanogpt_cli.places import RUNS
from nanogpt_cli.run import sinks
from nanogpt_cli.run.folder import find_run, list_runs
from nanogpt_cli.run.follow import EventReader

if TYPE_CHECKING:
    from nanogpt_cli.run.folder import RunFolder
    from nanogpt_cli.tui.state.entries import Entry

group = typer.Typer(
    help="List runs, tag them, compare two, draw several.", invoke_without_command=True
)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="runs")


@group.callback()
def runs(
    context: typer.Context,
    wanted: Annotated[
        str,
        typer.Option("--filter", metavar="QUERY", help="Only runs that match, as / on page Runs."),
    ] = "",
    out: options.RunsFolder = RUNS,
    as_json: options.AsJson = False,
) -> None:
    """List runs, newest first: state, step, best validation loss, tags.

    Examples:
      nanogpt runs
      nanogpt runs --filter "state:finished lr>=1e-3 -tag:try"
    """
    if context.invoked_subcommand:
        return
    entries = _matching(wanted, out)
    if as_json:
        console.emit_json({"runs": [summary(entry.run) for entry in entries]})
    elif entries:
        _show(entries)
    else:
        console.say(f"no runs in {out}/" if not wanted else f"no run in {out}/ matches {wanted}")
    first = ("watch", entries[0].run.path) if entries else ("train", "small")
    console.next_command(shell.command(*first))


def _matching(wanted: str, out: Path) -> list[Entry]:
    """The runs that match a query, with what the ends of their logs say; the newest first."""
    from nanogpt_cli.run import query
    from nanogpt_cli.tui.state.entries import Entry, recipe_keys

    asked, now = query.parse(wanted), time.time()
    found = [Entry(run) for run in list_runs(out)]
    for entry in found:
        entry.refresh(now)
        while not (entry.summary.best_is_exact or entry.summary.search()):
            pass
    asked.check_fields(recipe_keys(found))
    return [entry for entry in found if asked.holds(entry.values(now))]


def _show(entries: list[Entry]) -> None:
    numbers = ("size", "step", "best val", "loss", "tokens")
    cells = [_cells(entry) for entry in entries]
    tagged = any(line[-1] for line in cells)
    heads = ["run", "state", *numbers, "when", *(["tags"] if tagged else [])]
    cells = [line[: len(heads)] for line in cells]
    spare = ("tokens", "size", "when")
    table = console.fitting(heads, cells, numbers=numbers, spare=spare, shorten=("run",))
    console.print_table(table)


def _cells(entry: Entry) -> tuple[str, ...]:
    found, started = entry.summary, entry.summary.started
    steps = f"{found.step}/{started.max_steps}" if started and started.max_steps else "-"
    step = found.last_step
    return (
        entry.name, entry.state.word, console.count(entry.parameters or 0), steps,
        _loss(found.best), _loss(step.loss if step else None),
        console.count(step.tokens if step else 0), _when(found.last_time),
        " ".join(entry.notes.tags),
    )  # fmt: skip


group.command()(plotting.plot)
group.command()(noting.note)
group.command()(noting.tag)


@group.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A run.")],
    second: Annotated[str, typer.Argument(metavar="B", help="A run.")],
    out: options.RunsFolder = RUNS,
    as_json: options.AsJson = False,
) -> None:
    """Show the recipe keys that differ between two runs, and their results."""
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.tui.state.recipes import flat

    found = [find_run(name, out) for name in (first, second)]
    recipes = [recipe_files.load_resolved(r.own_recipe()).model_dump(mode="json") for r in found]
    values = [dict(flat(recipe)) for recipe in recipes]
    keys = [k for k in values[0] | values[1] if values[0].get(k) != values[1].get(k)]
    rows: dict[str, list[Any]] = {key: [v.get(key) for v in values] for key in keys}
    results = [summary(run) for run in found]
    if results[0]["begun_from"] != results[1]["begun_from"]:
        rows["begun_from"] = [result["begun_from"] for result in results]
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
    from nanogpt_cli.tui.state.session import RunSession

    session = RunSession(run.path, exact=True)
    session.poll(1 << 22, float("inf"))
    return plain.summary(session)


def _when(seconds: float) -> str:
    if not seconds:
        return ""
    moment = datetime.datetime.fromtimestamp(seconds)
    recent = moment.year == datetime.datetime.now().year
    return moment.strftime("%m-%d %H:%M" if recent else "%Y-%m-%d")
