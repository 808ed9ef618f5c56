"""Runs on other machines for ``nanogpt watch``: connects, and keeps copies while it is open."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from nanogpt_cli import foreign_files, shell
from nanogpt_cli.cli import console

if TYPE_CHECKING:
    from nanogpt_cli.run.remote.address import Address
    from nanogpt_cli.run.remote.follower import Follower


@contextlib.contextmanager
def copies(
    names: Sequence[str], root: Path, *, whole: bool, live: bool, control: bool
) -> Iterator[dict[str, Path]]:
    """Copies of the runs that are named ``HOST:PATH``, by that name.

    Args:
        names: of runs, those of this machine among them.
        root: the folder of local runs.
        whole: whether to copy all there is of them before going on.
        live: whether to follow them until the block ends.
        control: whether to pass on commands for their trainers.

    Raises:
        UserError: there is no such run, or its host cannot be reached.
    """
    far = {name: address for name in names if (address := _address(name, root))}
    found: dict[str, Path] = {}
    with contextlib.ExitStack() as following:
        for host in sorted({address.destination for address in far.values()}):
            there = {n: a for n, a in far.items() if a.destination == host}
            follower = _connected(list(there.values()), following, control=control)
            found |= dict(zip(there, follower.folders, strict=True))
            if whole:
                follower.sync()
            if live:
                follower.start()
        yield found


def place(folder: Path) -> str:
    """What to call a run in a message: its folder, or its address on another machine."""
    from nanogpt_cli.run.remote import status

    there = status.read(folder)
    return there.address if there else str(folder)


def advice(folder: Path, *, over: bool) -> str:
    """The command to type next about a run on another machine; "" for one that lies here.

    Args:
        folder: the run folder, or its copy.
        over: whether training has ended; what samples from the run needs its checkpoints here.
    """
    from nanogpt_cli.run.remote import status

    there = status.read(folder)
    if there is None:
        return ""
    if not over:
        return shell.command("watch", there.address)
    start = there.address.partition(":")[0] if "[" not in there.address else ""
    where = start or there.address.partition("]")[0] + "]"
    return f"scp -r {shell.quoted(f'{where}:{there.path}')} runs/"


def _address(name: str, root: Path) -> Address | None:
    """The address that a name is, unless something here has this name."""
    if ":" not in name or foreign_files.present(Path(name)) or foreign_files.present(root / name):
        return None
    from nanogpt_cli.run.remote.address import parse

    return parse(name)


def _connected(
    addresses: list[Address], following: contextlib.ExitStack, *, control: bool
) -> Follower:
    from nanogpt_cli.run.remote.follower import Follower
    from nanogpt_cli.run.remote.refusals import NotARunError

    asking = _can_ask()
    if sys.stderr.isatty():
        console.say(f"connecting to {addresses[0].destination} …")
    follower = Follower(addresses, control=control)
    following.callback(follower.stop)
    try:
        follower.connect(asking=asking)
    except NotARunError as error:
        if len(addresses) > 1:
            raise
        for run in error.runs:
            sys.stdout.write(f"{run}\n")
        console.next_command(shell.command("watch", error.runs[0]))
        raise typer.Exit from None
    return follower


def _can_ask() -> bool:
    """Whether ``ssh`` finds a terminal on which it can ask for a password."""
    if os.name != "posix":
        return sys.stdin.isatty()
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return True
    return False
