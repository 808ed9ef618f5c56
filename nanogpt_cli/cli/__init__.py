"""The ``nanogpt`` program: its commands, and the rendering of what goes wrong.

Command modules import typer alone; torch, textual and the other rooms are imported inside the
functions that need them, so that ``nanogpt --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import Abort, TyperException

from nanogpt_cli import __version__
from nanogpt_cli.cli import console
from nanogpt_cli.cli.lazy import LazyGroup
from nanogpt_cli.errors import UserError

_LONGEST_MESSAGE = 4000

app = typer.Typer(
    name="nanogpt",
    cls=LazyGroup,
    help="Understand, train, watch, sample and export GPT-2-style language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nanogpt-cli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Understand, train, watch, sample and export GPT-2-style language models."""


def main() -> NoReturn:
    """Run the program; exit codes are 0, 1 (a check failed), 2 (bad input), 130 (Ctrl-C)."""
    # OpenMP threads that spin while they wait take the cores from whatever else runs: 100 small
    # training steps took 79 s instead of 3 s beside two busy processes on two cores. Read when
    # torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(prog_name="nanogpt", standalone_mode=False)
    except UserError as error:
        _complain(error.message, error.hint)
        sys.exit(2)
    except TyperException as error:
        _complain_of_usage(error)
        sys.exit(2)
    except (KeyboardInterrupt, Abort):
        _complain("stopped", "")
        sys.exit(130)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            _leave_quietly()
        raise
    except BrokenPipeError:
        _leave_quietly()
    except OSError as error:
        if error.filename is None or os.environ.get("NANOGPT_DEBUG"):
            _complain_of_bug(error)
        # What stands in the way is a file or folder: no permission, a name too long, a full disk.
        name = str(error.filename2 or error.filename)
        _complain(f"cannot use {name:.300}: {error.strerror}", "")
        sys.exit(2)
    except Exception as error:  # a bug of ours: say so in one line, keep the details at hand
        _complain_of_bug(error)
    sys.exit(code if isinstance(code, int) else 0)


def _leave_quietly() -> NoReturn:
    """The reader of our output has seen enough; keep the interpreter from complaining at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _complain_of_bug(error: Exception) -> NoReturn:
    if os.environ.get("NANOGPT_DEBUG"):
        raise error
    _complain(
        f"this is a bug in nanogpt-cli: {type(error).__name__}: {error}",
        "set NANOGPT_DEBUG=1 and run the command again to see where it happened",
    )
    sys.exit(1)


def _complain_of_usage(error: TyperException) -> None:
    """An option or argument that is wrong; a command called bare gets its help page."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(error.format_message() + "\n")
    else:
        command = context.command_path if context else "nanogpt"
        unknown = getattr(error, "option_name", "")
        if key := _recipe_key(unknown, getattr(error, "possibilities", None), context):
            hint = f"keys of a recipe are set with --set {key}=VALUE"
            _complain(f"No such option: {unknown}", hint)
        else:
            _complain(error.format_message(), f"{command} --help")


def _recipe_key(option: str, near: Sequence[str] | None, context: Any) -> str:
    """The recipe's key that an unknown option means, in a command that has ``--set``.

    Empty where it looks like the beginning of an option there is (``near``).
    """
    options = {name for p in context.command.params for name in p.opts} if context else set()
    if not option or "--set" not in options or any(n.startswith(option) for n in near or ()):
        return ""
    from nanogpt_cli.recipe_files import nearest_key

    return nearest_key(option.lstrip("-").replace("-", "_"))


def _shortened(text: str) -> str:
    """What fits a screen: a file may hold a key of any length."""
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"


def _complain(message: str, hint: str) -> None:
    """One message and one hint on stderr; colour only where a person sees it."""
    colour = console.coloured(sys.stderr)
    red, dim, off = ("\x1b[31m", "\x1b[2m", "\x1b[0m") if colour else ("", "", "")
    message, hint = map(_shortened, (message, hint))
    text = f"{red}error:{off} {message}\n"
    if hint:
        text += f"{dim}hint: {hint}{off}\n"
    sys.stderr.write(text)
