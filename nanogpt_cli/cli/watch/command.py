"""``nanogpt watch``: the dashboard of run folders, whether live, finished or copied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanogpt_cli.cli import advice, options
from nanogpt_cli.cli.console import next_command, say
from nanogpt_cli.cli.runs import named_runs
from nanogpt_cli.cli.watch import printed, remote_runs
from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.places import RUNS
from nanogpt_cli.run.folder import list_runs
from nanogpt_cli.run.news import BELLS

if TYPE_CHECKING:
    from nanogpt_cli.tui.state.session import RunSession
    from nanogpt_cli.tui.state.workspace import Workspace

_MOST_OPENED = 8  # runs of event files; as many as there are marks


def register(app: typer.Typer) -> None:
    """Add ``watch`` to the program."""
    app.command("watch")(watch)


def watch(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names, folders (also TensorBoard's) or HOST:PATH; all runs by default."
        ),
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
        typer.Option(
            metavar="NAME", help="overview, layers, compare, samples, logs, system, runs."
        ),
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
    bell: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="Ring at the end, alarms and a crash: off, bell or osc9; by default the run's "
            "log.bell.",
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
        typer.Option(min=1, max=65535, help="Port for --serve; any free one by default."),
    ] = None,
    control: Annotated[
        bool,
        typer.Option(
            "--control",
            help="Let the browser command trainers, save notes, tags and pictures, and delete "
            "runs that have ended.",
        ),
    ] = False,
) -> None:
    """Watch runs: loss, layers, samples, alarms. Quitting does not stop the training.

    Examples:
      nanogpt watch
      nanogpt watch small small-2 --page compare
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
    with remote_runs.copies(names, out, whole=not opens, live=live, control=speaks) as far:
        opened = named_runs.find(names, out, copies=far)
        look = printed.Look(readonly or bool(opened.converted), ascii_only, theme, "", bell)
        folders = _folders(opened, every=json)
        workspace = _workspace(opened, names, out, look.readonly)
        several = len(folders) > 1 or (not names and len(list_runs(out)) > 1)
        listed = (opens or serve) and several and not far and not opened.converted
        look = replace(look, page=_page(page, len(folders), listed=listed))
        if live:
            opened.follow()
        if serve:
            from nanogpt_cli.cli.watch import serve as watch_serve

            ask = watch_serve.Ask(
                port or 0, control and not opened.converted, ascii_only, theme, look.page
            )
            watch_serve.serve(folders, ask, workspace)
        elif opens:
            _dashboard(folders, opened, look, workspace)
        else:
            if why_not:
                say(f"no dashboard: {why_not}; plain lines instead (--once prints one frame)")
            sessions = _sessions(folders, exact=json)
            if json:
                printed.print_json(sessions)
            elif frame:
                printed.print_frame(sessions, once, svg, printed.size_of(size), look, workspace)
            else:
                printed.follow(sessions)
            _next(sessions[0], opened)


def _workspace(opened: named_runs.Found, names: list[str], out: Path, readonly: bool) -> Workspace:
    """The list of page Runs: those named, if there are several; else the folder they lie in."""
    from nanogpt_cli.tui.state.workspace import Workspace

    found = [run.path for run in opened.runs]
    root = found[0].resolve().parent if names else out
    return Workspace(root, found if len(found) > 1 else (), readonly=readonly)


def _next(session: RunSession, opened: named_runs.Found) -> None:
    if command := named_runs.next_command(opened):
        next_command(command)
        return
    state = session.state()
    ended = session.view.ended.reason if session.view.ended else state.word
    far = remote_runs.advice(session.folder.path, over=not state.live)
    next_command(far or advice.after(session.folder, "" if state.live else ended))


def _folders(opened: named_runs.Found, *, every: bool) -> list[Path]:
    """Folders of the runs to open: of many in event files the newest ones."""
    found = [run.path for run in opened.runs]
    if opened.converted and not every and len(found) > _MOST_OPENED:
        say(f"{len(found)} runs; the newest {_MOST_OPENED} are open, Compare lists the others")
        found = found[:_MOST_OPENED]
    return found


def _sessions(folders: list[Path], *, exact: bool) -> list[RunSession]:
    from nanogpt_cli.tui.state import far

    return [far.session(folder, exact=exact) for folder in folders]


def _check_serving(serve: bool, port: int | None, control: bool, others: dict[str, bool]) -> None:
    if not serve and (control or port is not None):
        lonely = "--control" if control else "--port"
        raise UserError(f"{lonely} belongs to --serve", "give both, or neither")
    against = [name for name, given in others.items() if given]
    if serve and against:
        raise UserError(f"--serve does not go with {against[0]}", "leave one of them out")
    if serve:
        from nanogpt_cli.cli.watch import serve as watch_serve

        watch_serve.check_installed()


def _why_no_dashboard() -> str:
    from nanogpt_cli.tui import terminal

    return terminal.why_not()


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
    if theme is None:
        return
    from textual.theme import BUILTIN_THEMES

    if theme not in BUILTIN_THEMES:
        raise UserError(f"there is no theme {theme!r}", f"one of: {', '.join(BUILTIN_THEMES)}")


def _dashboard(
    folders: list[Path], opened: named_runs.Found, look: printed.Look, workspace: Workspace
) -> None:
    from nanogpt_cli.tui.app import run_dashboard

    sessions = _sessions(folders, exact=False)
    left = run_dashboard(
        sessions, readonly=look.readonly, ascii_only=look.ascii_only, theme=look.theme,
        page=look.page, bell=look.bell, workspace=workspace,
    )  # fmt: skip
    front = left.front or sessions[0]
    front.finish()
    if not opened.converted:
        say(printed.parting(front, asked_to_stop=left.stop))
    _next(front, opened)
