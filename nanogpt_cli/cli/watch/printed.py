"""What ``nanogpt watch`` prints: JSON, a frame, a line a second, and what happens to the run."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt_cli import files
from nanogpt_cli.cli.console import coloured, emit_json, say, write
from nanogpt_cli.cli.watch import remote_runs
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import draws
from nanogpt_cli.user_input import whole

if TYPE_CHECKING:
    from nanogpt_cli.tui.state.session import RunSession
    from nanogpt_cli.tui.state.workspace import Workspace

_DEFAULT_SIZE = (120, 40)
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


def size_of(text: str) -> tuple[int, int] | None:
    """Columns and rows that ``--size`` asks for; ``None`` if it was not given.

    Raises:
        UserError: it is no size, or out of range.
    """
    if not text:
        return None
    width, _, height = text.lower().partition("x")
    columns, lines = whole(width), whole(height)
    if columns is None or lines is None:
        raise UserError(f"--size {text!r} is not a size", "write columns x rows, e.g. 120x40")
    if not (20 <= columns <= 500 and 5 <= lines <= 300):
        raise UserError(f"--size {text} is out of range", "use 20x5 to 500x300")
    return columns, lines


def print_json(sessions: list[RunSession]) -> None:
    """Write a line of JSON a run to stdout."""
    from nanogpt_cli.tui.plain import summary

    for session in sessions:
        session.poll(1 << 22, float("inf"))
        emit_json(summary(session))


def print_frame(
    sessions: list[RunSession],
    once: bool,
    svg: Path | None,
    size: tuple[int, int] | None,
    look: Look,
    workspace: Workspace,
) -> None:
    """Write one frame: as a picture, as text to stdout, or both."""
    from nanogpt_cli.tui import still, terminal

    at_terminal = sys.stdout.isatty()
    if size is None and at_terminal and svg is None:
        found = shutil.get_terminal_size(_DEFAULT_SIZE)
        size = found.columns, found.lines - 1
    still.load(sessions)
    size = size or _DEFAULT_SIZE
    if svg is not None:
        frame = still.still(
            sessions,
            size,
            page=look.page,
            theme=look.theme,
            ascii_only=look.ascii_only,
            workspace=workspace,
        )
        with files.readable_os_errors("write the picture", svg):
            files.write_text(svg, frame.svg)
        say(f"wrote {svg}")
    if once:
        ascii_only, colours = look.ascii_only or not draws(sys.stdout), coloured(sys.stdout)
        frame = still.still(
            sessions, size, page=look.page, theme=look.theme, ascii_only=ascii_only,
            ramp=not (colours and terminal.has_shades()), workspace=workspace,
        )  # fmt: skip
        write(sys.stdout, frame.ansi if colours else frame.text)


def follow(sessions: list[RunSession]) -> None:
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


def parting(session: RunSession, *, asked_to_stop: bool) -> str:
    """What a run does when its dashboard has been left."""
    state, name = session.state(), remote_runs.place(session.folder.path)
    if state.live and (asked_to_stop or state.word == "stopping"):
        return f"{name} was asked to stop; it saves a checkpoint first"
    if state.word == "paused":
        return f"{name} is paused; P in the dashboard resumes it"
    return f"{name}: training continues" if state.live else f"{name}: {state.word}"
