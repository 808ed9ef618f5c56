"""The ``nanogpt`` program: its commands, and how it reports errors.

Command modules import at their top only what is light. The rooms of torch, ``recipe`` (pydantic
takes as long to import as everything else together) and Rich are imported inside the functions that
need them, so that help pages and shell completion answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import Abort, TyperException

from nanogpt_cli.cli import console, guard, help_page
from nanogpt_cli.cli.lazy import LazyGroup
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import printable
from nanogpt_cli.user_input import whole
from nanogpt_cli.version import __version__

_LONGEST_MESSAGE = 4000
_LARGEST_SIZE = 10_000  # of a terminal, in columns or lines

app = typer.Typer(
    name="nanogpt",
    cls=LazyGroup,
    help="Understand, train, watch, sample and export GPT-2-style language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # With "color", typer.echo does not strip control codes; the guard makes them visible instead.
    context_settings={"help_option_names": ["-h", "--help"], "color": True},
)


_FULL = (errno.ENOSPC, errno.EDQUOT)


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
    # OpenMP threads that spin while waiting take the cores away from other processes: beside two
    # busy processes on two cores, 100 small training steps took 79 s instead of 3 s. torch reads
    # the variable when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # NumPy's OpenBLAS starts a thread for each core, and each spins for some 60 ms of CPU time.
    # Nothing here multiplies matrices with NumPy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _forget_unusable_sizes()
    with guard.guarded() as out:
        code = _outcome(out)
    joining = sys.modules.get("nanogpt_cli.machine.joining")
    if joining is not None and joining.past_ranks:
        _leave_at_once(code)
    # If Ctrl-C came while an `exec` of source ran, as dataclasses do, CPython remembers it although
    # it was caught, and ends the process as killed by it. Another one makes it forget.
    exec("")
    sys.exit(code)


def _leave_at_once(code: int) -> NoReturn:
    """End a process that was one of several without the interpreter's own ending.

    A thread of gloo that frees a tensor meanwhile is killed for it, and the whole process with it:
    the launcher then takes a finished run for a failed one (pytorch/pytorch#179291).
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or never open
            stream.flush()
    os._exit(code)


def _forget_unusable_sizes() -> None:
    """Remove ``COLUMNS`` and ``LINES`` that are no size: Rich fails on "²" and fills the memory
    with lines of a billion columns. The size of the terminal itself is then asked for."""
    for name in ("COLUMNS", "LINES"):
        if not 1 <= (whole(os.environ.get(name, "")) or 0) <= _LARGEST_SIZE:
            os.environ.pop(name, None)


def _outcome(out: guard.Guard) -> int:
    """Run the command and flush its output; returns the exit code."""
    try:
        code = _run(out)
        out.flush()
    except BrokenPipeError:  # whoever read our output has closed it
        out.abandon()
        return 0
    except OSError as error:
        out.abandon()
        reason = "the disk is full" if error.errno in _FULL else error.strerror
        _complain(f"cannot write the output: {reason}", "free some space, or write it elsewhere")
        return 2
    return code


def _run(out: guard.Guard) -> int:
    """Run the command and report what goes wrong, except for failing output, which is raised."""
    try:
        code = app(prog_name="nanogpt", standalone_mode=False)
    except UserError as error:
        _complain(error.message, error.hint)
        return 2
    except TyperException as error:
        _complain_of_usage(error)
        return 2
    except (KeyboardInterrupt, Abort):
        _complain("stopped", "")
        return 130
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            raise stop.__context__ from None
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except UnicodeEncodeError as error:
        lacking = error.object[error.start : error.end]
        _complain(
            f"{error.object!r} cannot be written as {error.encoding}, which lacks {lacking!r}",
            "use other characters, or a UTF-8 locale: LC_ALL=C.UTF-8",
        )
        return 2
    except OSError as error:  # no caller has reported it more precisely
        if isinstance(error, BrokenPipeError) or out.failed_with(error):
            raise
        return _refused_by_system(error)
    except Exception as error:
        return _out_of_memory() if _lacks_memory(error) else _bug(error)
    return code if isinstance(code, int) else 0


def _refused_by_system(error: OSError) -> int:
    """Report a full disk, a missing permission or a vanished file, which are no bugs of ours."""
    if os.environ.get("NANOGPT_DEBUG"):
        traceback.print_exception(error)
    reason = "the disk is full" if error.errno in _FULL else error.strerror or str(error)
    name = error.filename2 or error.filename
    where = f"cannot use {name!s:.300}: " if name else ""
    _complain(
        f"{where}{reason}",
        "free some space and run the command again"
        if error.errno in _FULL
        else "NANOGPT_DEBUG=1 shows what the program was doing",
    )
    return 2


def _lacks_memory(error: Exception) -> bool:
    from nanogpt_cli.machine import memory  # without torch

    return memory.ran_out(error)


def _out_of_memory() -> int:
    _complain(
        "there is not enough memory",
        "use a smaller batch or model; the command plan forecasts what a recipe needs",
    )
    return 2


def _bug(error: Exception) -> int:
    """Report in one line that this is a bug of ours, and how to see the traceback."""
    if os.environ.get("NANOGPT_DEBUG"):
        traceback.print_exception(error)
    else:
        _complain(
            f"this is a bug in nanogpt-cli: {type(error).__name__}: {error}",
            "set NANOGPT_DEBUG=1 and run the command again to see where it happened",
        )
    return 1


def _complain_of_usage(error: TyperException) -> None:
    """Report a wrong option or argument; a command without arguments shows its help page."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        help_page.show(error.format_message() + "\n", sys.stderr)
    else:
        command = context.command_path if context else "nanogpt"
        unknown = getattr(error, "option_name", "")
        if key := _recipe_key(unknown, getattr(error, "possibilities", None), context):
            hint = f"keys of a recipe are set with --set {key}=VALUE"
            _complain(f"No such option: {unknown}", hint)
        else:
            # Checks of our own reach Typer through pydantic, which puts its own words before them.
            _complain(error.format_message().replace("Value error, ", ""), f"{command} --help")


def _recipe_key(option: str, near: Sequence[str] | None, context: Any) -> str:
    """The recipe key that an unknown option probably means, in a command that has ``--set``.

    Empty if the option is the beginning of an existing one (``near``).
    """
    options = {name for p in context.command.params for name in p.opts} if context else set()
    if not option or "--set" not in options or any(n.startswith(option) for n in near or ()):
        return ""
    from nanogpt_cli.recipe.problems import nearest_key

    return nearest_key(option.lstrip("-").replace("-", "_"))


def _shortened(text: str) -> str:
    """Cut a message to what fits a screen, because a file may contain a key of any length."""
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"


def _complain(message: str, hint: str) -> None:
    """Write one message and one hint to stderr, with colours if it takes them."""
    message, hint = map(_shortened, (message, hint))
    text = f"{console.painted('error:', 'red', sys.stderr)} {printable(message)}\n"
    if hint:
        text += console.painted(f"hint: {hint}", "dim", sys.stderr) + "\n"
    console.write(sys.stderr, text)
