"""``nanogpt runs``: the runs there are, and what differs between two."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli.cli import console
from nanogpt_cli.places import RUNS

if TYPE_CHECKING:
    from nanogpt_cli.runlog import RunFolder

Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where run folders lie.")]
AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON.")]

group = typer.Typer(help="List runs, compare two.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="runs")


@group.callback()
def runs(context: typer.Context, out: Out = RUNS, as_json: AsJson = False) -> None:
    """List runs, newest first: state, step, best validation loss."""
    if context.invoked_subcommand:
        return
    from nanogpt_cli.runlog import list_runs

    rows = [summary(run) for run in list_runs(out)]
    if as_json:
        console.emit_json({"runs": rows})
        return
    if not rows:
        console.say(f"no runs in {out}/")
        console.next_command("nanogpt train small")
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("run", "state", "step", "best val loss", "loss", "tokens", "when"):
        table.add_column(title, justify="left" if title in ("run", "state", "when") else "right")
    for row in rows:
        steps = f"{row['step']}/{row['max_steps']}"
        table.add_row(
            row["run"], row["state"], steps, _number(row["best_val_loss"]), _number(row["loss"]),
            console.count(row["tokens"]), row["when"],
        )  # fmt: skip
    console.stdout().print(table)
    console.next_command(f"nanogpt watch {rows[0]['run']}")


@group.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A")],
    second: Annotated[str, typer.Argument(metavar="B")],
    out: Out = RUNS,
    as_json: AsJson = False,
) -> None:
    """Show the recipe keys that differ between two runs, beside their results."""
    from nanogpt_cli import recipe_files
    from nanogpt_cli.runlog import find_run

    found = [find_run(name, out) for name in (first, second)]
    values = [_flat(recipe_files.load_resolved(r.recipe).model_dump(mode="json")) for r in found]
    keys = [k for k in values[0] | values[1] if values[0].get(k) != values[1].get(k)]
    rows: dict[str, list[Any]] = {key: [v.get(key) for v in values] for key in keys}
    results = [summary(run) for run in found]
    for key in ("state", "step", "tokens", "loss", "best_val_loss"):
        rows[key] = [result[key] for result in results]
    if as_json:
        console.emit_json({"runs": [r.name for r in found], "values": rows})
        return
    from rich import box
    from rich.table import Table

    table = Table("", *(run.name for run in found), box=box.SIMPLE_HEAD, pad_edge=False)
    for key, pair in rows.items():
        table.add_row(key, *(_number(v) if isinstance(v, float) else str(v) for v in pair))
    console.stdout().print(table)


@group.command("csv")
def csv_(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="The newest by default.")] = "",
    out: Out = RUNS,
) -> None:
    """Write the steps and evaluations of a run to stdout as comma-separated values."""
    import sys

    from nanogpt_cli import sinks
    from nanogpt_cli.runlog import EventReader, find_run

    sinks.write_csv(iter(EventReader(find_run(run or None, out).events).read_all()), sys.stdout)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def summary(run: RunFolder) -> dict[str, Any]:
    """What the event log says of a run, in plain values."""
    import datetime

    from nanogpt_cli import events
    from nanogpt_cli.runlog import EventReader

    row: dict[str, Any] = {
        "run": run.name, "state": "empty", "step": 0, "max_steps": 0, "loss": None,
        "best_val_loss": None, "bits_per_byte": None, "tokens": 0, "when": "",
    }  # fmt: skip
    started: events.RunStarted | None = None
    for event in EventReader(run.events).read_all():
        if event.time:
            moment = datetime.datetime.fromtimestamp(event.time)
            row["when"] = moment.isoformat(" ", "minutes")
        if isinstance(event, events.RunStarted):
            started = event
            row |= {"max_steps": event.max_steps, "state": "running", "step": event.step}
        elif isinstance(event, events.Step):
            row |= {"step": event.step, "loss": event.loss, "tokens": event.tokens}
        elif isinstance(event, events.Eval):
            row["bits_per_byte"] = event.bits_per_byte
            best = row["best_val_loss"]
            row["best_val_loss"] = event.val_loss if best is None else min(best, event.val_loss)
        elif isinstance(event, events.RunEnded):
            row["state"] = event.reason
    if row["state"] == "running" and started and not _alive(started.host, started.pid):
        row["state"] = "crashed"
    return row


def _alive(host: str, pid: int) -> bool:
    """Whether the trainer may still run; a foreign host is given the benefit of the doubt."""
    if host != platform.node() or pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
