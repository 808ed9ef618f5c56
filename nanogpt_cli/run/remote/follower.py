"""Follows the runs of one host through one connection that is made again whenever it breaks."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from nanogpt_cli import files, foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.run.commands import COMMANDS
from nanogpt_cli.run.remote import far_side, refusals
from nanogpt_cli.run.remote.address import Address
from nanogpt_cli.run.remote.mirror import About, Mirror, about
from nanogpt_cli.run.remote.wire import LostError, Wire

LONGEST_PAUSE = 60.0  # seconds between two attempts to connect; the first come after 1, 2, 4, …
_GLANCE = 0.2  # seconds between two looks for commands to be passed on
_COMMAND = re.compile(rf"\d{{20}}-[0-9a-f]{{6}}-({'|'.join(COMMANDS)})")
_LONGEST_ARGUMENT = 1 << 16  # bytes of a command's argument; prompts are the longest
_MOST_RUNS = 10_000  # in a list of those in a folder
_ATTEMPTS = 3  # to copy a file that changes under our hands, before the others have their turn


class Follower:
    """Keeps copies of the runs at some addresses of one host.

    ``connect`` and ``sync`` work in the caller's thread, and raise what is wrong; ``start`` goes on
    in a thread of its own, and whatever happens then stands in the status of the copies.

    Args:
        addresses: all of the same destination.
        control: whether to pass command files on to the trainers.
    """

    def __init__(self, addresses: Sequence[Address], *, control: bool) -> None:
        self.addresses = list(addresses)
        self.control = control
        self.mirrors: list[Mirror] = []
        self._paths = [path for address in addresses for path in address.candidates]
        self._numbers: list[int] = []  # of the paths that are runs, counted from 1
        self._wire: Wire | None = None
        self._held = contextlib.ExitStack()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._news = time.monotonic()

    @property
    def folders(self) -> list[Path]:
        """The copies, one for each address."""
        return [mirror.folder.path for mirror in self.mirrors]

    def connect(self, *, asking: bool) -> None:
        """Make the first connection, and find the runs.

        Args:
            asking: whether ``ssh`` may ask for a password on the terminal.

        Raises:
            UserError: the host cannot be reached, or has no such run.
        """
        destination = self.addresses[0].destination
        try:
            self._wire = Wire(destination, self._paths, asking=asking)
            self._numbers = [self._find(address) for address in self.addresses]
        except LostError as error:
            raise refusals.unreachable(destination, str(error)) from None
        with files.readable_os_errors("keep a copy of the run", self.addresses[0].copies()):
            for address, number in zip(self.addresses, self._numbers, strict=True):
                mirror = Mirror(address, self._own_copy(address), control=self.control)
                mirror.path = self._paths[number - 1].removeprefix("./")
                mirror.drop_commands()
                self.mirrors.append(mirror)
            self._connected()

    def sync(self) -> None:
        """Copy everything there is now.

        Raises:
            UserError: the connection breaks, or the disk is full.
        """
        with files.readable_os_errors("keep a copy of the run", self.folders[0]):
            try:
                while self._round():
                    pass
            except LostError as error:
                raise refusals.lost(self.addresses[0].host, str(error)) from None

    def start(self) -> None:
        """Go on in a thread."""
        self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the connection, and the thread."""
        self._stop.set()
        if self._thread is not None:
            if (wire := self._wire) is not None:
                wire.hang_up()
            self._thread.join(5)
        self._close()
        for mirror in self.mirrors:
            with contextlib.suppress(OSError, UserError):
                mirror.cut("it is not followed at the moment")
        self._held.close()

    def _own_copy(self, address: Address) -> Path:
        """A folder that no other process copies into: two dashboards on one run have two."""
        place, number = address.copies(), 1
        while True:
            try:
                self._held.enter_context(files.locked(place / f"{number}.lock", _taken))
            except _TakenError:
                number += 1
                continue
            return (place if number == 1 else place / str(number)) / address.name

    def _follow(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                if self._wire is None:
                    self._wire = Wire(self.addresses[0].destination, self._paths, asking=False)
                    self._connected()
                news = self._round()
            except (LostError, UserError, OSError) as error:
                self._cut(str(error))
                self._stop.wait(min(LONGEST_PAUSE, 2.0**failures))
                failures = min(failures + 1, 10)
                continue
            failures = 0
            self._rest(news)

    def _connected(self) -> None:
        for mirror in self.mirrors:
            mirror.connected()

    def _cut(self, reason: str) -> None:
        self._close()
        for mirror in self.mirrors:
            with contextlib.suppress(OSError, UserError):  # the reason may be a full disk
                mirror.cut(reason)

    def _close(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def _rest(self, news: bool) -> None:
        """Wait for the next round: a second while the logs grow, longer when they do not."""
        now = time.monotonic()
        self._news = now if news else self._news
        quiet = now - self._news
        end = now + (1.0 if quiet < 30 else 2.0 if quiet < 300 else 5.0)
        while time.monotonic() < end and not self._stop.wait(_GLANCE):
            if self.control and any(mirror.commands() for mirror in self.mirrors):
                return

    def _round(self) -> bool:
        """Look at every run once; whether there was anything new."""
        looked = [self._look(m, n) for m, n in zip(self.mirrors, self._numbers, strict=True)]
        return any(looked)

    def _look(self, mirror: Mirror, number: int) -> bool:
        assert self._wire is not None
        self._pass_on(mirror, number)
        process = mirror.process(self._wire.host)
        exists, there = self._ask_about(mirror, number, process, probe=mirror.quiet())
        if not exists:
            return False
        found = [
            self._copy(mirror, number, name, about)
            for name, about in zip(far_side.FILES, there, strict=True)
        ]
        return any(found)

    def _ask_about(
        self, mirror: Mirror, number: int, process: int, *, probe: bool
    ) -> tuple[bool, list[About | str]]:
        assert self._wire is not None
        sent = time.time()
        exists, now, alive, held, there = _answer(self._wire, number, process, probe)
        mirror.notice_clock(now, sent, time.time())
        closed = [n for n, a in zip(far_side.FILES, there, strict=True) if a == "unreadable"]
        mirror.tell(
            exists=exists,
            alive=mirror.alive(alive, held),
            unreadable=f"no permission to read {closed[0]} there" if closed else "",
        )
        return exists, there

    def _copy(self, mirror: Mirror, number: int, name: str, there: About | str) -> bool:
        """Bring the copy of one file up to date; whether anything came."""
        assert self._wire is not None
        came, attempts = False, 0
        if there == "absent":
            mirror.gone(name)
        while isinstance(there, About) and attempts < _ATTEMPTS and not self._stop.is_set():
            piece = mirror.wanted(name, there)
            if piece is None:
                break
            offset, count = piece
            self._wire.ask(f"r {number} {name} {offset} {count}\n")
            data = self._wire.take(count)
            after = about(self._wire.line())
            if mirror.put(name, offset, data, there, after):
                came = True
                mirror.tell()
            else:
                attempts += 1
                there = after
            self._pass_on(mirror, number)
        return came

    def _pass_on(self, mirror: Mirror, number: int) -> None:
        """Send the command files that the dashboard has written, each at most once."""
        assert self._wire is not None
        for path in mirror.commands() if self.control else []:
            name = path.name.rpartition("-")[2]
            try:
                argument = foreign_files.read_bytes(path, _LONGEST_ARGUMENT)
            except UserError:
                argument = None
            path.unlink(missing_ok=True)
            if argument is None or not _COMMAND.fullmatch(path.name):
                continue
            mirror.tell(trouble=f"whether the command {name} has arrived is not known")
            self._wire.ask(f"c {number} {path.name} {len(argument)}\n".encode() + argument)
            taken = self._wire.line() == ["c", "ok"]
            refused = f"the command {name} was refused: {mirror.path}/control cannot be written"
            mirror.tell(trouble="" if taken else refused)

    def _find(self, address: Address) -> int:
        """The number of the path at which the run of an address lies."""
        assert self._wire is not None
        numbers = {path: number for number, path in enumerate(self._paths, 1)}
        folders = []
        for path in address.candidates:
            exists, _, _, _, there = _answer(self._wire, numbers[path], 0, probe=False)
            there = [there[far_side.FILES.index(n)] for n in (far_side.LOG, far_side.RECIPE)]
            if any(about != "absent" for about in there):
                return numbers[path]
            if exists:
                folders.append(path)
        if not folders:
            raise refusals.no_folder(address)
        for path in folders:
            if runs := self._list(numbers[path]):
                raise refusals.NotARunError(address, path.removeprefix("./"), runs)
        raise refusals.no_run(address)

    def _list(self, number: int) -> list[str]:
        """The names of the runs in a folder, newest first."""
        assert self._wire is not None
        self._wire.ask(f"l {number}\n")
        found: list[tuple[int, str]] = []
        while (words := self._wire.line()) != ["l."]:
            if len(words) < 3 or not words[1].isdecimal() or len(found) > _MOST_RUNS:
                raise LostError("the far side does not answer as it should")
            found.append((int(words[1]), " ".join(words[2:])))
        return [name for _, name in sorted(found, reverse=True)]


def _answer(
    wire: Wire, number: int, process: int, probe: bool
) -> tuple[bool, int, str, str, list[About | str]]:
    """Whether a folder exists, the far time, process and lock (y, n, ?), and each of ``FILES``."""
    wire.ask(f"p {number} {process} {int(probe)}\n")
    words = wire.line()
    if len(words) != 5 or words[0] != "p" or not words[2].isdecimal():
        raise LostError("the far side does not answer as it should")
    there = [about(wire.line()) for _ in far_side.FILES]
    return words[1] == "y", int(words[2]), words[3], words[4], there


class _TakenError(Exception):
    """Another process keeps this copy."""


def _taken() -> None:
    raise _TakenError
