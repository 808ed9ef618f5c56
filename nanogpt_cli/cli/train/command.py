"""``nanogpt train``: a recipe becomes a run."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli import shell
from nanogpt_cli.cli import advice, console, options
from nanogpt_cli.cli.train import jobs
from nanogpt_cli.cli.train.jobs import Job, Request
from nanogpt_cli.errors import UserError
from nanogpt_cli.places import RUNS
from nanogpt_cli.user_input import whole_from_environment

if TYPE_CHECKING:
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
            "with --resume the run to resume, the newest by default.",
            show_default=False,
        ),
    ] = "",
    sets: options.Sets = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume a run from its newest intact checkpoint.")
    ] = False,
    before: Annotated[
        int | None,
        typer.Option(
            "--before",
            min=1,
            metavar="STEP",
            help="With --resume: from the newest intact checkpoint before this step; later ones "
            "are set aside.",
        ),
    ] = None,
    skip_step: Annotated[
        list[int] | None,
        typer.Option(
            "--skip-step",
            min=1,
            metavar="STEP",
            help="Skip the update of this step; repeatable.",
        ),
    ] = None,
    start_from: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="Begin with the weights of a run, a Hugging Face folder or nanoGPT's ckpt.pt.",
        ),
    ] = "",
    new_tokens: Annotated[
        bool,
        typer.Option("--new-tokens", help="With --from: new token embeddings, for other text."),
    ] = False,
    tui: Annotated[
        bool,
        typer.Option("--tui", help="Watch in the dashboard; the trainer is a separate process."),
    ] = False,
    processes: options.Processes = 1,
    restarts: Annotated[
        int,
        typer.Option(
            "--restarts",
            min=0,
            metavar="N",
            help="With --procs: restart up to N times if one dies.",
        ),
    ] = 0,
    lr_find: Annotated[
        bool, typer.Option("--lr-find", help="Instead of training, try out learning rates.")
    ] = False,
    certify: Annotated[
        bool,
        typer.Option(
            "--certify",
            help="Prove first that the tokens are the bytes of the source; at the end, bits per "
            "byte of the best weights.",
        ),
    ] = False,
    out: options.RunsFolder = RUNS,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the run; as --set run.seed=N.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, mps; as --set train.device=…")
    ] = "",
    as_json: options.AsJson = False,
    folder: Annotated[str, typer.Option("--run-folder", hidden=True)] = "",
) -> None:
    """Train a model as a recipe says.

    Prepares the data when it is missing, and never overwrites a run: a second run of the same
    name gets a number. Ctrl-C finishes the step, saves, and says how to resume.
    """
    from nanogpt_cli.cli.train import running

    overrides = [*(sets or []), *([] if seed is None else [f"run.seed={seed}"])]
    overrides += [f"train.device={device!r}"] if device else []
    asked = Request(
        recipe, tuple(overrides), out, resume, start_from, new_tokens, folder,
        _launched() or processes, certify, before or 0, tuple(skip_step or ()),
    )  # fmt: skip
    jobs.check_request(asked)
    if certify and (tui or lr_find):
        raise UserError(
            "--certify goes with neither --tui nor --lr-find",
            "certify the run when it has ended: `nanogpt eval --certify`",
        )
    if lr_find:
        _try_rates(asked, as_json)
        return

    def make_job(again: bool = False) -> Job:
        if resume:  # who is started again has begun to go on
            return jobs.resumed(replace(asked, before=0, skip=()) if again else asked)
        return (jobs.restarted(asked) if again else None) or jobs.begun(asked)

    if _launched():
        ended = running.run_as_rank(make_job)
        if ended is not None:
            made, last = ended
            product = not (folder or resume)
            _report(made, last, as_json=as_json, product=product, certify=certify)
            # To the launcher a run that was stopped in order is no failure.
            raise typer.Exit(0 if last.reason == "stopped" else _exit_code(last))
        return
    made = make_job()
    if tui or processes > 1:
        _in_other_processes(made, asked, tui, restarts, as_json)
        return
    last = running.run_alone(made)
    _report(made, last, as_json=as_json, certify=certify)
    raise typer.Exit(_exit_code(last))


def _launched() -> int:
    """How many processes a launcher (torchrun) started, 0 without one."""
    return whole_from_environment("WORLD_SIZE", 0) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def _in_other_processes(job: Job, asked: Request, tui: bool, restarts: int, as_json: bool) -> None:
    """Start the trainer as a child behind the dashboard, or as several processes."""
    from nanogpt_cli.cli.train import launch

    run, processes = job.run, asked.processes
    # A resumed run's overrides are written to its recipe by the trainer, once it has begun.
    arguments = [str(run.path) if job.resume else str(run.recipe), "--out", str(asked.out)]
    arguments += shell.settings(asked.sets)
    arguments += ["--resume"] if job.resume else ["--run-folder", str(run.path)]
    arguments += ["--from", job.source] if job.source else []
    arguments += ["--new-tokens"] if job.new_tokens else []
    arguments += map(str, asked.going_on())
    if tui:
        shared = ["--procs", str(processes), "--restarts", str(restarts)]
        launch.run_with_dashboard(run, arguments + (shared if processes > 1 else []))
        return
    launch.run_processes(processes, restarts, arguments, run)
    last = launch.last_ending(run)
    certified = _certified(job, last) if asked.certify else {}
    if as_json:
        console.emit_json(_facts(run, last) | certified)
    else:
        typer.echo(run.path)
    if certified:  # what to type next stands last
        console.next_command(advice.after(run, last.reason))
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
        "seconds": round(_seconds(run), 2),
    }


def _certified(job: Job, ended: RunEnded) -> dict[str, Any]:
    """The certificate of a run; nothing is certified if it was stopped or failed."""
    from nanogpt_cli.cli import evaluate

    if _exit_code(ended):
        return {"bits_per_byte": None, "certificate": None}
    return evaluate.certified(job.run.path, job.data, job.recipe.train.device, job.proof)


def _seconds(run: RunFolder) -> float:
    """Seconds of training over all sessions of a run, as the dashboard shows them."""
    from nanogpt_cli.tui.state.session import RunSession

    session = RunSession(run.path)
    session.poll(1 << 22, float("inf"))
    return session.view.seconds


def _report(
    job: Job, ended: RunEnded, *, as_json: bool, product: bool = True, certify: bool = False
) -> None:
    """Where the run lies and what to type next; stdout is left to whoever started the ranks."""
    run = job.run
    best = f", best val loss {ended.best_val_loss:.4f}" if ended.best_val_loss else ""
    word = advice.ENDINGS.get(ended.reason, ended.reason)
    why = f": {ended.message}" if ended.message else ""
    steps = "step" if ended.step == 1 else "steps"
    console.say(
        f"{word} after {ended.step} {steps} and {console.duration(_seconds(run))}{why}{best}"
    )
    certified = _certified(job, ended) if certify else {}
    if product and as_json:
        console.emit_json(_facts(run, ended) | certified)
    elif product:
        typer.echo(run.path)
    console.next_command(advice.after(run, ended.reason, _launched()))


def _try_rates(asked: Request, as_json: bool) -> None:
    """The learning-rate range test, as a table and a suggestion."""
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.text.tokens import open_data
    from nanogpt_cli.training.studies import lr_find

    recipe = recipe_files.load(asked.name, asked.sets).recipe
    data = open_data(jobs.prepared(recipe))
    start = jobs.load_start(asked.source, asked.out, asked.new_tokens) if asked.source else None
    points = []
    for point in lr_find.sweep(recipe, data, start):
        points.append(point)
        if len(points) % 10 == 0:
            console.say(f"lr {point.lr:9.2e}  loss {point.loss:.4f}")
    look = shell.hint("init-inspect", asked.name, *shell.settings(asked.sets))
    found = lr_find.suggest(points, hint=f"look at how the model starts: {look}")
    if as_json:
        curve = [[point.lr, point.loss] for point in points]
        console.emit_json({"suggested": found.lr, "diverged": found.diverged, "curve": curve})
    else:
        typer.echo(f"{found.lr:.2g}")
    end = f"diverges near {found.diverged:.1e}" if found.diverged else "did not diverge"
    console.say(f"loss falls fastest near lr = {found.lr:.1e}; {end}")
    console.next_command(shell.command(*asked.words(f"optim.lr={found.lr:.2g}")))
