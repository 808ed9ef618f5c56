"""``nanogpt watch``: the dashboard of run folders, whether live, finished or copied."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanogpt_cli import files
from nanogpt_cli.cli import advice, named_runs, options, watch_remote
from nanogpt_cli.cli.console import coloured, draws, emit_json, next_command, say, write
from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.places import RUNS
from nanogpt_cli.run.news import BELLS
from nanogpt_cli.user_input import whole

if TYPE_CHECKING:
    from nanogpt_cli.tui.session import RunSession

_DEFAULT_SIZE = (120, 40)
_MOST_OPENED = 8  # runs of event files; as many as there are marks
_PAUSE = 1.0  # seconds between two reads of the log without a dashboard


@dataclass(frozen=True)
class Look:
    """How the dashboard looks, and what it may do.

    Attributes:
        readonly: it sends nothing to a trainer.
        ascii_only, theme, page, bell: as the options of these names.
    """

    readonly: bool
    ascii_only: bool
    theme: str | None
    page: str
    bell: str


def register(app: typer.Typer) -> None:
    """Add ``watch`` to the program."""
    app.command("watch")(watch)


def watch(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Names, folders (also TensorBoard's) or HOST:PATH; else the newest."),
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
        typer.Option(metavar="NAME", help="overview, layers, compare, samples, logs or system."),
    ] = "",
    readonly: Annotated[
        bool, typer.Option("--readonly", help="Disable the keys that send commands to the trainer.")
    ] = False,
    ascii_only: Annotated[
        bool, typer.Option("--ascii", help="No braille: for poor fonts and screen readers.")
    ] = False,
    bell: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="At the end, alarms, a crash: off, bell or osc9; else as the run's log.bell.",
        ),
    ] = "",
    theme: Annotated[str | None, typer.Option(help="textual-dark, textual-light, nord, …")] = None,
    size: Annotated[
        str, typer.Option(metavar="WxH", help="Size of the frame for --once and --svg.")
    ] = "",
    serve: Annotated[
        bool, typer.Option("--serve", help="Show it in a browser on this machine, read-only.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Of --serve; one that is free by default."),
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="Let the browser send commands to the trainer.")
    ] = False,
) -> None:
    """Watch runs: loss, layers, samples, alarms. Quitting does not stop the training.

    Examples:
      nanogpt watch
      nanogpt watch small small-2          (compare)
      nanogpt watch small --svg small.svg
      nanogpt watch gpu1:runs/small        (through ssh)
      nanogpt watch --serve                (in a browser)
      nanogpt watch lightning_logs         (event files of TensorBoard)
    """
    names = runs or []
    _check_theme(theme)
    if bell and bell not in BELLS:
        raise UserError(f"there is no bell {bell!r}", f"one of: {', '.join(BELLS)}")
    frame = once or svg is not None
    if control and readonly:
        raise UserError("--control does not go with --readonly", "leave one of them out")
    others = {"--json": json, "--once": once, "--svg": svg is not None, "--plain": plain}
    _check_serving(serve, port, control, others)
    why_not = "" if json or frame or plain or serve else _why_no_dashboard()
    opens, live = not (json or frame or plain or why_not), not (json or frame)
    speaks = control if serve else opens and not readonly
    with watch_remote.copies(names, out, whole=not opens, live=live, control=speaks) as far:
        opened = named_runs.find(names, out, copies=far)
        look = Look(readonly or bool(opened.converted), ascii_only, theme, "", bell)
        folders = _folders(opened, every=json)
        look = replace(look, page=_page(page, len(folders)))
        if live:
            opened.follow()
        if serve:
            from nanogpt_cli.cli import watch_serve

            ask = watch_serve.Ask(
                port or 0, control and not opened.converted, ascii_only, theme, look.page
            )
            watch_serve.serve(folders, ask)
        elif opens:
            _dashboard(folders, opened, look)
        else:
            if why_not:
                say(f"no dashboard: {why_not}; plain lines instead (--once prints one frame)")
            sessions = _sessions(folders, exact=json)
            if json:
                _print_json(sessions)
            elif frame:
                _print_frame(sessions, once, svg, _size(size), look)
            else:
                _follow(sessions)
            _next(sessions[0], opened)


def _next(session: RunSession, opened: named_runs.Found) -> None:
    if command := named_runs.next_command(opened):
        next_command(command)
        return
    state = session.state()
    ended = session.view.ended.reason if session.view.ended else state.word
    far = watch_remote.advice(session.folder.path, over=not state.live)
    next_command(far or advice.after(session.folder, "" if state.live else ended))


def _folders(opened: named_runs.Found, *, every: bool) -> list[Path]:
    """Folders of the runs to open: of many in event files the newest ones."""
    found = [run.path for run in opened.runs]
    if opened.converted and not every and len(found) > _MOST_OPENED:
        say(f"{len(found)} runs; the newest {_MOST_OPENED} are open, Compare lists the others")
        found = found[:_MOST_OPENED]
    return found


def _sessions(folders: list[Path], *, exact: bool) -> list[RunSession]:
    from nanogpt_cli.tui import far

    return [far.session(folder, exact=exact) for folder in folders]


def _check_serving(serve: bool, port: int | None, control: bool, others: dict[str, bool]) -> None:
    if not serve and (control or port is not None):
        lonely = "--control" if control else "--port"
        raise UserError(f"{lonely} belongs to --serve", "give both, or neither")
    against = [name for name, given in others.items() if given]
    if serve and against:
        raise UserError(f"--serve does not go with {against[0]}", "leave one of them out")
    if serve:
        from nanogpt_cli.cli import watch_serve

        watch_serve.check_installed()


def _why_no_dashboard() -> str:
    from nanogpt_cli.tui import terminal

    return terminal.why_not()


def _page(page: str, runs: int) -> str:
    """The page to open: several runs are there to be compared."""
    from nanogpt_cli.tui.keys import PAGES

    page = page or ("compare" if runs > 1 else "overview")
    if page not in PAGES:
        close = nearest(page, PAGES)
        hint = f"did you mean {close!r}?" if close else f"one of: {', '.join(PAGES)}"
        raise UserError(f"there is no page {page!r}", hint)
    return page


def _check_theme(theme: str | None) -> None:
    if theme is None:
        return
    from textual.theme import BUILTIN_THEMES

    if theme not in BUILTIN_THEMES:
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
    look: Look,
) -> None:
    from nanogpt_cli.tui import still

    terminal = sys.stdout.isatty()
    if size is None and terminal and svg is None:
        found = shutil.get_terminal_size(_DEFAULT_SIZE)
        size = found.columns, found.lines - 1
    still.load(sessions)
    size = size or _DEFAULT_SIZE
    if svg is not None:
        frame = still.still(
            sessions, size, page=look.page, theme=look.theme, ascii_only=look.ascii_only
        )
        with files.readable_os_errors("write the picture", svg):
            files.write_text(svg, frame.svg)
        say(f"wrote {svg}")
    if once:
        ascii_only, colours = look.ascii_only or not draws(sys.stdout), coloured(sys.stdout)
        frame = still.still(
            sessions, size, page=look.page, theme=look.theme, ascii_only=ascii_only,
            ramp=not colours,
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


def _dashboard(folders: list[Path], opened: named_runs.Found, look: Look) -> None:
    from nanogpt_cli.tui.app import run_dashboard

    sessions = _sessions(folders, exact=False)
    left = run_dashboard(
        sessions, readonly=look.readonly, ascii_only=look.ascii_only, theme=look.theme,
        page=look.page, bell=look.bell,
    )  # fmt: skip
    sessions[0].finish()
    if not opened.converted:
        say(parting(sessions[0], asked_to_stop=left.stop))
    _next(sessions[0], opened)


def parting(session: RunSession, *, asked_to_stop: bool) -> str:
    """What a run does when its dashboard has been left."""
    state, name = session.state(), watch_remote.place(session.folder.path)
    if state.live and (asked_to_stop or state.word == "stopping"):
        return f"{name} was asked to stop; it saves a checkpoint first"
    if state.word == "paused":
        return f"{name} is paused; P in the dashboard resumes it"
    return f"{name}: training goes on" if state.live else f"{name}: {state.word}"
