"""``nanogpt train``: a recipe becomes a run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli.cli import advice, console, options
from nanogpt_cli.places import RUNS
from nanogpt_cli.user_input import whole_from_environment

if TYPE_CHECKING:
    from nanogpt_cli.cli.training import Plan
    from nanogpt_cli.recipe import Recipe
    from nanogpt_cli.run.events import RunEnded
    from nanogpt_cli.run.folder import RunFolder


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(train)


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe file or the name of a shipped one (nanogpt recipes); "
            "with --resume the run to go on with, the newest by default.",
            show_default=False,
        ),
    ] = "",
    sets: options.Sets = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run from its newest whole checkpoint.")
    ] = False,
    start_from: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="Begin with the weights of a run, a Hugging Face folder or nanoGPT's ckpt.pt.",
        ),
    ] = "",
    tui: Annotated[
        bool, typer.Option("--tui", help="Watch in the dashboard; the trainer is its own process.")
    ] = False,
    processes: options.Processes = 1,
    restarts: Annotated[
        int,
        typer.Option(
            "--restarts", min=0, metavar="N", help="With --procs: start again N times if one dies."
        ),
    ] = 0,
    lr_find: Annotated[
        bool, typer.Option("--lr-find", help="Instead of training, try out learning rates.")
    ] = False,
    out: options.RunsFolder = RUNS,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the run; as --set run.seed=N.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, mps; as --set train.device=…")
    ] = "",
    as_json: options.AsJson = False,
    folder: Annotated[str, typer.Option("--run-folder", hidden=True)] = "",
) -> None:
    """Train a model as a recipe says.

    Prepares the data when it is missing, and never overwrites a run: a second run of the same
    name gets a number. Ctrl-C finishes the step, saves, and says how to go on.
    """
    from nanogpt_cli.cli import training

    overrides = list(sets or [])
    overrides += [] if seed is None else [f"run.seed={seed}"]
    overrides += [f"train.device={device!r}"] if device else []
    _check(recipe, resume, start_from)
    if lr_find:
        _try_rates(recipe, overrides, as_json)
        return

    def plan(again: bool = False) -> Plan:
        number = _launched() or processes
        if resume:
            return _resumed(recipe, out, overrides)
        resumed = _restarted(recipe, out, overrides, folder) if again else None
        return resumed or _begun(recipe, out, overrides, folder, start_from, number)

    if _launched():
        ended = training.run_as_rank(plan)
        if ended is not None:
            _report(*ended, as_json=as_json, product=not (folder or resume))
            # To the launcher a run that was stopped in order is no failure.
            raise typer.Exit(0 if ended[1].reason == "stopped" else _exit_code(ended[1]))
        return
    made = plan()
    if tui or processes > 1:
        _in_other_processes(made, out, overrides, tui, processes, restarts, as_json)
        return
    last = training.run_alone(made)
    _report(made, last, as_json=as_json)
    raise typer.Exit(_exit_code(last))


def _check(recipe: str, resume: bool, start_from: str) -> None:
    from nanogpt_cli.errors import UserError

    if not recipe and not resume:
        raise UserError("which recipe?", "nanogpt train small; nanogpt recipes lists them")
    if resume and start_from:
        raise UserError("--resume and --from exclude each other", "--from begins a new run")


def _launched() -> int:
    """How many processes a launcher (torchrun) started, 0 without one."""
    return whole_from_environment("WORLD_SIZE", 0) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def _begun(name: str, out: Path, sets: list[str], folder: str, source: str, processes: int) -> Plan:
    """A new run: recipe checked, data ready, folder made."""
    from nanogpt_cli import files
    from nanogpt_cli.cli.training import Plan
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.run import sinks
    from nanogpt_cli.run.folder import RunFolder, fresh_run

    loaded = recipe_files.load(name, sets)
    for note in loaded.notes:
        console.say(note)
    sinks.check(loaded.recipe.log.sinks)
    recipe = loaded.recipe.for_processes(processes)
    data = _prepared(recipe)
    with files.readable_os_errors("make a run folder", out):
        run = RunFolder(Path(folder)) if folder else fresh_run(recipe.run.name, out)
        files.write_text(run.recipe, recipe_files.to_toml(recipe))
    if run.name != recipe.run.name and not folder:
        console.say(f"{out / recipe.run.name} exists; this run is {run.path}")
    return Plan(recipe, data, run, resume=False, source=source)


def _restarted(name: str, out: Path, sets: list[str], folder: str) -> Plan | None:
    """The run a launcher's first try has begun, if it came to a checkpoint."""
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.run.folder import RunFolder, list_runs

    wanted = recipe_files.load(name, sets).recipe.run.name
    begun = [
        run for run in list_runs(out) if re.fullmatch(rf"{re.escape(wanted)}(-\d+)?", run.name)
    ]
    newest = RunFolder(Path(folder)) if folder else next(iter(begun), None)
    if newest is None or not list(newest.checkpoints.glob("step-*")):
        return None
    return _resumed(str(newest.path), out, [])


def _resumed(name: str, out: Path, sets: list[str]) -> Plan:
    """An earlier run, with its own recipe."""
    from nanogpt_cli.cli.training import Plan
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.run.folder import find_run
    from nanogpt_cli.training import retention

    run = find_run(name or None, out)
    loaded = recipe_files.load(run.recipe, sets)
    planned = loaded.recipe.train.max_steps
    if max(retention.list_steps(run), default=0) >= planned:
        console.say(f"all {planned} steps are made; --set train.max_steps=N makes the run longer")
    return Plan(loaded.recipe, _prepared(loaded.recipe), run, resume=True)


def _prepared(recipe: Recipe) -> Path:
    """The recipe's data, made if it is missing."""
    from nanogpt_cli.text import prepare

    section = recipe.data
    return prepare.ensure(
        section.name, section.tokenizer, val_fraction=section.val_fraction, report=console.say
    )


def _in_other_processes(
    plan: Plan,
    out: Path,
    sets: list[str],
    tui: bool,
    processes: int,
    restarts: int,
    as_json: bool,
) -> None:
    """Start the trainer as a child behind the dashboard, or as several processes."""
    from nanogpt_cli.cli import launch

    run = plan.run
    # A resumed run's overrides are written to its recipe by the trainer, once it has begun.
    arguments = [str(run.path) if plan.resume else str(run.recipe), "--out", str(out)]
    arguments += [item for text in sets for item in ("--set", text)]
    arguments += ["--resume"] if plan.resume else ["--run-folder", str(run.path)]
    arguments += ["--from", plan.source] if plan.source else []
    if tui:
        shared = ["--procs", str(processes), "--restarts", str(restarts)]
        launch.run_with_dashboard(run, arguments + (shared if processes > 1 else []))
        return
    launch.run_processes(processes, restarts, arguments, run)
    last = launch.last_ending(run)
    if as_json:
        console.emit_json(_facts(run, last))
    else:
        typer.echo(run.path)
    raise typer.Exit(_exit_code(last))


def _exit_code(ended: RunEnded) -> int:
    return {"stopped": 130, "non_finite": 1, "diverged": 1, "error": 1}.get(ended.reason, 0)


def _facts(run: RunFolder, ended: RunEnded) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "step": ended.step,
        "reason": ended.reason,
        "best_val_loss": ended.best_val_loss,
        "checkpoint": ended.checkpoint,
        "seconds": round(ended.seconds, 2),
    }


def _report(plan: Plan, ended: RunEnded, *, as_json: bool, product: bool = True) -> None:
    """Where the run lies and what to type next; stdout is left to whoever started the ranks."""
    run = plan.run
    best = f", best val loss {ended.best_val_loss:.4f}" if ended.best_val_loss else ""
    word = advice.ENDINGS.get(ended.reason, ended.reason)
    why = f": {ended.message}" if ended.message else ""
    steps = "step" if ended.step == 1 else "steps"
    console.say(
        f"{word} after {ended.step} {steps} and {console.duration(ended.seconds)}{why}{best}"
    )
    if product and as_json:
        console.emit_json(_facts(run, ended))
    elif product:
        typer.echo(run.path)
    console.next_command(advice.after(run, ended.reason))


def _try_rates(name: str, sets: list[str], as_json: bool) -> None:
    """The learning-rate range test, as a table and a suggestion."""
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.text.tokens import open_data
    from nanogpt_cli.training import lr_find

    recipe = recipe_files.load(name, sets).recipe
    data = open_data(_prepared(recipe))
    points = []
    for point in lr_find.sweep(recipe, data):
        points.append(point)
        if len(points) % 10 == 0:
            console.say(f"lr {point.lr:9.2e}  loss {point.loss:.4f}")
    found = lr_find.suggest(points)
    if as_json:
        curve = [[point.lr, point.loss] for point in points]
        console.emit_json({"suggested": found.lr, "diverged": found.diverged, "curve": curve})
    else:
        typer.echo(f"{found.lr:.2g}")
    end = f"diverges near {found.diverged:.1e}" if found.diverged else "did not diverge"
    console.say(f"loss falls fastest near lr = {found.lr:.1e}; {end}")
    console.next_command(f"nanogpt train {name} --set optim.lr={found.lr:.2g}")
