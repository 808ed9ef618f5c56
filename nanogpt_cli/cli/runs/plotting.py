"""``nanogpt runs plot``: curves of several runs as a picture."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli import files, shell
from nanogpt_cli.cli import console, options, pictures
from nanogpt_cli.cli.runs import named_runs
from nanogpt_cli.errors import UserError
from nanogpt_cli.places import RUNS

if TYPE_CHECKING:
    from nanogpt_cli.run.folder import RunFolder
    from nanogpt_cli.tui.drawing.curves import Curve
    from nanogpt_cli.tui.state.session import RunSession


def plot(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Run names or folders, TensorBoard's too; the newest by default."),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="val_loss, bits_per_byte, loss, lr, grad_norm, tokens_per_s, step_s; of layers: "
            "resid_rms, … over depth, resid_rms/3 over time; a tag of event files.",
        ),
    ] = "val_loss",
    x: Annotated[str, typer.Option(help="step, tokens, time")] = "step",
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw to a file.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="The same; needs matplotlib.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="The numbers drawn.")
    ] = None,
    band: Annotated[
        str, typer.Option(help="Over seeds: range (lowest to highest), sd (±1), none.")
    ] = "range",
    smooth: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.9999,
            help="Weight of the past in a moving average; 0.9 for what jumps, 0 shows every step.",
        ),
    ] = None,
    at: Annotated[
        int | None, typer.Option(min=0, metavar="STEP", help="Step of a statistic over depth.")
    ] = None,
    log_x: Annotated[bool, typer.Option("--log-x", help="Logarithmic x axis.")] = False,
    log_y: Annotated[bool, typer.Option("--log-y", help="Logarithmic y axis.")] = False,
    title: Annotated[str, typer.Option(metavar="TEXT", help="Above the picture.")] = "",
    out: options.RunsFolder = RUNS,
    as_json: options.AsJson = False,
) -> None:
    """Draw curves of runs; those that differ in the seed alone become a mean with a band.

    Examples:
      nanogpt runs plot small small-2 --svg loss.svg
      nanogpt runs plot small --metric resid_rms --svg depth.svg
    """
    from nanogpt_cli.tui.drawing import curve_figure, curves

    for option, value, known in (("--x", x, curves.AXES), ("--band", band, curves.BANDS)):
        if value not in known:
            raise UserError(f"{option} {value}: unknown", f"known: {', '.join(known)}")
    if not (svg or png or table or as_json):
        raise UserError("runs plot has no file to write", "name one: --svg loss.svg")
    for path in filter(None, (svg, png)):
        pictures.check(path)
    wanted = curves.Wanted(metric, x, smooth, band, at, log_x, log_y, title)
    chosen = named_runs.find(runs or [], out)
    sessions = [_read(run) for run in chosen.runs]
    views = [session.view for session in sessions]
    wanted = curves.resolved(views, wanted)
    found = curves.curves(views, wanted)
    drawn = {name for curve in found for name in curve.runs}
    for view in views:
        if view.name not in drawn:
            console.say(f"left out: {view.name} holds no finite value of {metric}")
    for path in filter(None, (svg, png)):
        pictures.write(path, curve_figure.figure(found, wanted))
        console.say(f"wrote {path}")
    if table:
        with files.readable_os_errors("write the numbers", table):
            files.write_text(table, _csv(found))
        console.say(f"wrote {table}")
    if as_json:
        console.emit_json({"metric": metric, "x": x, "smoothing": wanted.beta, "band": band,
                           "curves": [_as_json(curve) for curve in found]})  # fmt: skip
    paths = [source.root for source in chosen.converted] or [s.folder.path for s in sessions]
    console.next_command(shell.command("watch", *paths))


def _read(run: RunFolder) -> RunSession:
    from nanogpt_cli.tui.state.session import RunSession

    session = RunSession(run.path, exact=True)
    session.poll(1 << 22, float("inf"))
    if session.problem:
        raise UserError(session.problem)
    if problems := session.problems():
        console.say(f"{run.name}: {problems}")
    return session


def _csv(found: list[Curve]) -> str:
    """A row for each point: the curve, its number of runs, x, the mean, and the band's edges."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["curve", "runs", "x", "mean", "low", "high"])
    for curve in found:
        for row in zip(curve.x, curve.y, curve.low, curve.high, strict=True):
            writer.writerow([curve.label, len(curve.runs), *map(float, row)])
    return out.getvalue()


def _as_json(curve: Curve) -> dict[str, Any]:
    columns = {"x": curve.x, "mean": curve.y, "low": curve.low, "high": curve.high}
    told = {"label": curve.label, "runs": list(curve.runs), "diverged": curve.diverged}
    told |= {"steps": list(curve.steps), "theory": list(curve.theory)}
    return told | {name: list(map(float, column)) for name, column in columns.items()}
