"""``nanogpt watch``: the dashboard of run folders, whether live, finished or copied."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanogpt_cli import files
from nanogpt_cli.cli import advice, options
from nanogpt_cli.cli.console import coloured, draws, emit_json, next_command, say, write
from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.places import RUNS
from nanogpt_cli.run.folder import find_run, list_runs
from nanogpt_cli.user_input import whole

if TYPE_CHECKING:
    from nanogpt_cli.tui.session import RunSession
    from nanogpt_cli.tui.workspace import Workspace

_DEFAULT_SIZE = (120, 40)
_PAUSE = 1.0  # seconds between two reads of the log without a dashboard


def register(app: typer.Typer) -> None:
    """Add ``watch`` to the program."""
    app.command("watch")(watch)


def watch(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Run names or folders; by default a list of all runs."),
    ] = None,
    out: options.RunsFolder = RUNS,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One line of JSON; one per run.")] = False,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write one frame as a picture.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print a line per second instead of a dashboard.")
    ] = False,
    page: Annotated[
        str,
        typer.Option(metavar="NAME", help="overview, layers, compare, samples, logs or runs."),
    ] = "",
    readonly: Annotated[
        bool,
        typer.Option(
            "--readonly", help="Disable the keys that command the trainer or change a folder."
        ),
    ] = False,
    ascii_only: Annotated[
        bool, typer.Option("--ascii", help="No braille: for poor fonts and screen readers.")
    ] = False,
    theme: Annotated[str | None, typer.Option(help="textual-dark, textual-light, nord, …")] = None,
    size: Annotated[
        str, typer.Option(metavar="WxH", help="Size of the frame for --once and --svg.")
    ] = "",
) -> None:
    """Watch runs: loss, layers, samples, alarms. Quitting does not stop the training.

    Examples:
      nanogpt watch
      nanogpt watch small small-2 --page compare
      nanogpt watch small --svg small.svg
    """
    sessions = _open(runs or [], out, exact=json)
    live = not (json or once or plain or svg is not None)
    page = _page(page, len(sessions), listed=live and _several(runs or [], out))
    if json:
        _print_json(sessions)
        _next(sessions[0])
    elif once or svg is not None:
        _print_frame(sessions, once, svg, _size(size), page, theme, ascii_only, _list(runs, out))
        _next(sessions[0])
    elif plain:
        _follow(sessions)
        _next(sessions[0])
    else:
        _dashboard(sessions, readonly, ascii_only, theme, page, _list(runs, out, readonly))


def _several(names: list[str], out: Path) -> bool:
    """Whether there are several runs to choose from."""
    return len(names or list_runs(out)) > 1


def _list(names: list[str] | None, out: Path, readonly: bool = False) -> Workspace:
    """The list of page Runs: those named, if there are several; else the folder they lie in."""
    from nanogpt_cli.tui.workspace import Workspace

    found = [find_run(name, out).path for name in names or []]
    root = found[0].resolve().parent if len(found) == 1 else out
    return Workspace(root, found if len(found) > 1 else (), readonly=readonly)


def _next(session: RunSession) -> None:
    state = session.state()
    ended = session.view.ended.reason if session.view.ended else state.word
    next_command(advice.after(session.folder, "" if state.live else ended))


def _open(names: list[str], root: Path, *, exact: bool) -> list[RunSession]:
    from nanogpt_cli.tui.session import RunSession

    found = [find_run(name, root) for name in names] or [find_run(None, root)]
    return [RunSession(run.path, exact=exact) for run in found]


def _page(page: str, runs: int, *, listed: bool) -> str:
    """The page to open: a list to choose from, and in a picture the comparison of several."""
    from nanogpt_cli.tui.keys import PAGES

    page = page or ("runs" if listed else "compare" if runs > 1 else "overview")
    if page not in PAGES:
        close = nearest(page, PAGES)
        hint = f"did you mean {close!r}?" if close else f"one of: {', '.join(PAGES)}"
        raise UserError(f"there is no page {page!r}", hint)
    return page


def _check_theme(theme: str | None) -> None:
    from textual.theme import BUILTIN_THEMES

    if theme is not None and theme not in BUILTIN_THEMES:
        raise UserError(f"there is no theme {theme!r}", f"one of: {', '.join(BUILTIN_THEMES)}")


def _size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    width, _, height = text.lower().partition("x")
    columns, lines = whole(width), whole(height)
    if columns is None or lines is None:
        raise UserError(f"--size {text!r} is not a size", "write columns x rows, e.g. 120x40")
    if not (20 <= columns <= 500 and 5 <= lines <= 300):
        raise UserError(f"--size {text} is out of range", "use 20x5 to 500x300")
    return columns, lines


def _print_json(sessions: list[RunSession]) -> None:
    from nanogpt_cli.tui.plain import summary

    for session in sessions:
        session.poll(1 << 22, float("inf"))
        emit_json(summary(session))


def _print_frame(
    sessions: list[RunSession],
    once: bool,
    svg: Path | None,
    size: tuple[int, int] | None,
    page: str,
    theme: str | None,
    ascii_only: bool,
    workspace: Workspace,
) -> None:
    from nanogpt_cli.tui import still

    _check_theme(theme)
    terminal = sys.stdout.isatty()
    if size is None and terminal and svg is None:
        found = shutil.get_terminal_size(_DEFAULT_SIZE)
        size = found.columns, found.lines - 1
    still.load(sessions)
    size = size or _DEFAULT_SIZE
    if svg is not None:
        frame = still.still(
            sessions, size, page=page, theme=theme, ascii_only=ascii_only, workspace=workspace
        )
        with files.readable_os_errors("write the picture", svg):
            files.write_text(svg, frame.svg)
        say(f"wrote {svg}")
    if once:
        ascii_only, colours = ascii_only or not draws(sys.stdout), coloured(sys.stdout)
        frame = still.still(
            sessions, size, page=page, theme=theme, ascii_only=ascii_only, ramp=not colours,
            workspace=workspace,
        )  # fmt: skip
        write(sys.stdout, frame.ansi if colours else frame.text)


def _follow(sessions: list[RunSession]) -> None:
    """Print a line to stdout whenever a run has changed, until no run is live."""
    from nanogpt_cli.tui.plain import line

    said: dict[int, tuple[int, str]] = {}
    while True:
        live = False
        for number, session in enumerate(sessions):
            session.poll(1 << 22, float("inf"))
            state = session.state()
            now = (session.view.version, state.word)
            if said.get(number) != now:
                said[number] = now
                sys.stdout.write(line(session) + "\n")
                sys.stdout.flush()
            live = live or state.live
        if not live:
            return
        time.sleep(_PAUSE)


def _dashboard(
    sessions: list[RunSession],
    readonly: bool,
    ascii_only: bool,
    theme: str | None,
    page: str,
    workspace: Workspace,
) -> None:
    from nanogpt_cli.tui import terminal

    reason = terminal.why_not()
    if reason:
        say(f"no dashboard: {reason}; plain lines instead (--once prints one frame)")
        _follow(sessions)
        return
    _check_theme(theme)
    from nanogpt_cli.tui.app import run_dashboard
    from nanogpt_cli.tui.session import RunSession

    left = run_dashboard(
        [session.folder.path for session in sessions],
        readonly=readonly, ascii_only=ascii_only, theme=theme, page=page, workspace=workspace,
    )  # fmt: skip
    # The dashboard has read the log in its own sessions, perhaps of another run in front.
    front = RunSession(left.folder) if left.folder is not None else sessions[0]
    front.poll(1 << 22, float("inf"))
    say(parting(front, asked_to_stop=left.stop))
    _next(front)


def parting(session: RunSession, *, asked_to_stop: bool) -> str:
    """What a run does when its dashboard has been left."""
    state, name = session.state(), session.folder.path
    if state.live and (asked_to_stop or state.word == "stopping"):
        return f"{name} was asked to stop; it saves a checkpoint first"
    if state.word == "paused":
        return f"{name} is paused; P in the dashboard resumes it"
    return f"{name}: training goes on" if state.live else f"{name}: {state.word}"
