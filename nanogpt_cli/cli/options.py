"""Options that several commands share, with the same name, meaning and help text.

A test compares the options of all commands that have these names with the definitions here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from nanogpt_cli import shell
from nanogpt_cli.errors import UserError
from nanogpt_cli.places import RUNS

# Name -> help. A command may add to it after a semicolon.
WORDS: Final = {
    "--json": "One line of JSON",
    "--set": "Override a key",
    "--yes": "Do not ask",
    "--device": "auto, cpu, cuda, mps",
    "--checkpoint": "Which one of a run",
    "--run": "The model, as RUN or SOURCE",
    "--procs": "Processes that share each step",
    "--threads": "CPU threads; 0 measures which count is fastest",
    "--workers": "Threads; all cores by default",
    "--seed": "Seed of",
    "--out": "Where",
}

# Of threads or processes on one machine, and of seeds as PyTorch takes them.
MOST_THREADS: Final = 1024
LARGEST_SEED: Final = (1 << 63) - 1


def _without_secrets(sets: list[str] | None) -> list[str] | None:
    """Overrides as commands may repeat them: an address to notify goes into the environment."""
    return [_without_secret(text) for text in sets] if sets else sets


def _without_secret(text: str) -> str:
    key, _, literal = text.partition("=")
    if key.strip().rpartition(".")[2] != "notify":
        return text
    from nanogpt_cli.run import addresses

    value = literal.strip().strip("\"'")
    try:
        whole = addresses.is_whole(addresses.check_address(value))
    except ValueError:
        return text  # reading the recipe says what is wrong with it, without the value
    if whole:
        os.environ[addresses.ENVIRONMENT] = value
    return f"{key}={addresses.hidden(value)}"


AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key; repeatable: optim.lr=3e-4.",
        callback=_without_secrets,
    ),
]
RunsFolder = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where run folders lie.")]
RunName = Annotated[
    str,
    typer.Option("--run", metavar="RUN", help="The model, as RUN or SOURCE.", show_default=False),
]
Checkpoint = Annotated[
    str, typer.Option("--checkpoint", metavar="best|last|STEP", help="Which one of a run.")
]
Raw = Annotated[
    bool,
    typer.Option("--raw", help="The weights themselves, not their average (with optim.ema)."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps.")]
Processes = Annotated[
    int,
    typer.Option(
        "--procs",
        "--gpus",
        min=1,
        max=MOST_THREADS,
        metavar="N",
        help="Processes that share each step.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, max=MOST_THREADS, help="Threads; all cores by default."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


NanoGPT = Annotated[
    Path | None,
    typer.Option(
        "--against",
        "--nanogpt",
        metavar="PATH",
        help="Time nanoGPT as well: a checkout whose code you trust.",
    ),
]


def either(argument: str, option: str, name: str) -> str:
    """The model named by the argument or by ``--run``.

    Raises:
        UserError: both are given.
    """
    if argument and option:
        raise UserError(f"{name} and --run name the model twice", "give one of them")
    return argument or option


def given(context: typer.Context, **instead: str | None) -> str:
    """The command being run, with the options that were typed.

    Args:
        context: the command and its values.
        instead: parameter -> the value to write in place of its own; None leaves it out.
    """
    values = {
        p.name: instead.get(p.name, context.params[p.name])
        for p in context.command.params
        if p.name in instead or _typed(context, p.name)
    }
    words: list[object] = [context.command.name]
    for p in context.command.params:
        value = values.get(p.name)
        if value is None:
            continue
        if p.param_type_name == "argument":
            words.append(value)
        elif isinstance(value, bool):
            words.append((p.opts if value else p.secondary_opts)[0])
        else:
            words += [p.opts[0], value]
    return shell.hint(*words)


def _typed(context: typer.Context, name: str | None) -> bool:
    origin = context.get_parameter_source(name) if name in context.params else None
    return origin is not None and origin.name == "COMMANDLINE"


def sample_words(source: str, checkpoint: str, out: Path, raw: bool) -> list[object]:
    """The words of ``nanogpt sample`` for the model that these options name."""
    words: list[object] = ["sample", *([source] if source else [])]
    words += [] if checkpoint == "best" else ["--checkpoint", checkpoint]
    words += [] if out == RUNS else ["--out", out]
    return words + (["--raw"] if raw else [])
