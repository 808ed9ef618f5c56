"""``nanogpt train``: a recipe becomes a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli.cli import console
from nanogpt_cli.places import RUNS

if TYPE_CHECKING:
    from nanogpt_cli.events import RunEnded
    from nanogpt_cli.recipe import Recipe
    from nanogpt_cli.runlog import RunFolder


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
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a key: --set optim.lr=3e-4. Repeatable."
        ),
    ] = None,
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
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where run folders are made.")
    ] = RUNS,
    seed: Annotated[int | None, typer.Option("--seed", help="Same as --set run.seed=…")] = None,
    device: Annotated[str, typer.Option("--device", help="Same as --set train.device=…")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one line of JSON on stdout.")
    ] = False,
    folder: Annotated[str, typer.Option("--run-folder", hidden=True)] = "",
) -> None:
    """Train a model as a recipe says.

    Prepares the data when it is missing, and never overwrites a run: a second run of the same
    name gets a number. Ctrl-C finishes the step, saves, and says how to go on.
    """
    from nanogpt_cli.errors import UserError

    overrides = list(sets or [])
    if seed is not None:
        overrides.append(f"run.seed={seed}")
    if device:
        overrides.append(f"train.device={device!r}")
    if not recipe and not resume:
        raise UserError("which recipe?", "nanogpt train small; nanogpt recipes lists them")
    if resume and start_from:
        raise UserError("--resume and --from exclude each other", "--from begins a new run")
    plan = _resumed(recipe, out, overrides) if resume else _begun(recipe, out, overrides, folder)
    if tui:
        _with_dashboard(plan, recipe, resume, start_from, overrides, out)
        return
    ended = _train(plan, start_from)
    _report(plan.run, ended, as_json)
    if ended.reason == "stopped":
        raise typer.Exit(130)
    if ended.reason == "non_finite":
        raise typer.Exit(1)


class _Plan:
    """A recipe, its prepared data and its run folder."""

    def __init__(self, recipe: Recipe, data: Path, run: RunFolder, resume: bool) -> None:
        self.recipe, self.data, self.run, self.resume = recipe, data, run, resume


def _begun(name: str, out: Path, sets: list[str], folder: str) -> _Plan:
    """A new run: recipe checked, data ready, folder made."""
    from nanogpt_cli import files, recipe_files
    from nanogpt_cli.runlog import RunFolder, fresh_run

    loaded = recipe_files.load(name, sets)
    for note in loaded.notes:
        console.say(note)
    data = _prepared(loaded.recipe)
    with files.readable_os_errors("make a run folder", out):
        run = RunFolder(Path(folder)) if folder else fresh_run(loaded.recipe.run.name, out)
        files.write_text(run.recipe, recipe_files.to_toml(loaded.recipe))
    if run.name != loaded.recipe.run.name and not folder:
        console.say(f"{out / loaded.recipe.run.name} exists; this run is {run.path}")
    return _Plan(loaded.recipe, data, run, resume=False)


def _resumed(name: str, out: Path, sets: list[str]) -> _Plan:
    """An earlier run, with its own recipe."""
    from nanogpt_cli import files, recipe_files
    from nanogpt_cli.runlog import find_run

    run = find_run(name or None, out)
    loaded = recipe_files.load(run.recipe, sets)
    with files.readable_os_errors("write the recipe", run.recipe):
        files.write_text(run.recipe, recipe_files.to_toml(loaded.recipe))
    return _Plan(loaded.recipe, _prepared(loaded.recipe), run, resume=True)


def _prepared(recipe: Recipe) -> Path:
    """The recipe's data, made if it is missing."""
    from nanogpt_cli.text import prepare

    section = recipe.data
    return prepare.ensure(
        section.name, section.tokenizer, val_fraction=section.val_fraction, report=console.say
    )


def _train(plan: _Plan, start_from: str) -> RunEnded:
    """Run the trainer in this process; returns its last event."""
    from nanogpt_cli.cli import training

    return training.run(plan.recipe, plan.data, plan.run, resume=plan.resume, source=start_from)


def _with_dashboard(
    plan: _Plan, recipe: str, resume: bool, start_from: str, sets: list[str], out: Path
) -> None:
    """Start the trainer as a child process and follow its run folder."""
    from nanogpt_cli.cli import training

    arguments: list[str] = [plan.run.name if resume else recipe, "--out", str(out)]
    arguments += [item for text in sets for item in ("--set", text)]
    arguments += ["--resume"] if resume else ["--run-folder", str(plan.run.path)]
    arguments += ["--from", start_from] if start_from else []
    training.run_with_dashboard(plan.run, arguments)


def _report(run: RunFolder, ended: RunEnded, as_json: bool) -> None:
    """Where the run lies and what to type next."""
    facts: dict[str, Any] = {
        "run": str(run.path),
        "step": ended.step,
        "reason": ended.reason,
        "best_val_loss": ended.best_val_loss,
        "checkpoint": ended.checkpoint,
        "seconds": round(ended.seconds, 2),
    }
    best = f", best val loss {ended.best_val_loss:.4f}" if ended.best_val_loss else ""
    console.say(
        f"{ended.reason} at step {ended.step} after {console.duration(ended.seconds)}{best}"
    )
    if as_json:
        console.emit_json(facts)
    else:
        typer.echo(run.path)
    where = "" if run.path.parent == RUNS else f" --out {run.path.parent}"
    if ended.reason == "stopped":
        console.next_command(f"nanogpt train {run.name} --resume{where}")
    elif ended.reason == "non_finite":
        console.next_command(f"nanogpt watch {run.path}")
    else:
        console.next_command(f"nanogpt sample --run {run.path}")
