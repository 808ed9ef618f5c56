"""The dashboard in a pseudo-terminal: the time from a key to the picture that it asks for."""

from __future__ import annotations

import contextlib
import os
import re
import select
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nanogpt_cli.errors import UserError

SIZE: Final = (120, 40)
_LIMIT = 20.0  # seconds that a picture may take
_PAUSE = 0.1  # seconds between a picture and the next key
# A terminal that says that it can show whole frames is told where each of them ends.
_ASKED, _ANSWER = b"\x1b[?2026$p", b"\x1b[?2026;2$y"
_FRAME_ENDS = b"\x1b[?2026l"
_SEQUENCE = re.compile(rb"\x1b\[[0-9;?$]*[A-Za-z]")
_PAGES: Final = ("layers", "compare", "samples", "logs", "system", "runs", "overview")
_LOADED: Final = "finished  step"  # how the header shows the end; the list of runs knows it before
_AXES: Final = ("by tokens", "by time", "by step")


@dataclass(frozen=True)
class Answer:
    """Milliseconds from a key to the end of the first frame that shows what it asked for.

    Attributes:
        wall: all of them.
        ready: without those that the dashboard's main thread waited for a processor.
        cpu: those that this thread computed.
    """

    wall: float
    ready: float
    cpu: float


class Watched:
    """``nanogpt watch`` in a pseudo-terminal of 120 x 40, which has to be read all the time."""

    def __init__(self, run: Path) -> None:
        import fcntl
        import struct
        import termios

        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", SIZE[1], SIZE[0], 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nanogpt_cli", "watch", str(run)],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        )  # fmt: skip
        os.close(theirs)
        self._read = b""
        self.loaded = False  # whether the header has shown the end of the log

    def press(self, keys: bytes) -> None:
        """Type keys."""
        os.write(self._ours, keys)

    def drain(self) -> None:
        """Read and discard everything until the dashboard ends, in a thread."""
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # it was closed meanwhile
            while self._take(None):
                self._read = b""

    def _take(self, seconds: float | None) -> bool:
        """Read once, for so long at most; returns False if there was nothing, or it has ended."""
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        try:
            found = os.read(self._ours, 1 << 16)
        except OSError:  # the other side is closed
            return False
        if _ASKED in found:
            self.press(_ANSWER)
        self._read += found
        return bool(found)

    def frames(self, seconds: float) -> Iterator[str]:
        """The texts of the frames that end within so many seconds from now, without colours."""
        ends = time.perf_counter() + seconds
        while (left := ends - time.perf_counter()) > 0:
            if not self._take(left) and self.process.poll() is not None:
                raise UserError("the dashboard ended", "")
            *whole, self._read = self._read.split(_FRAME_ENDS)
            for frame in whole:
                text = _SEQUENCE.sub(b"", frame).decode("utf-8", "replace")
                self.loaded = self.loaded or _LOADED in text
                yield text

    def wait_for(self, text: str) -> None:
        """Read until a frame shows a text."""
        if not any(text in frame for frame in self.frames(_LIMIT)):
            raise UserError(f"the dashboard does not show {text!r}", "")

    def answer(self, key: bytes, text: str) -> Answer:
        """Press a key and read until a frame shows a text that was not on the screen before."""
        cpu, waited = self._counters()
        began = time.perf_counter()
        self.press(key)
        self.wait_for(text)
        wall = time.perf_counter() - began
        cpu_now, waited_now = self._counters()
        cpu, waited = cpu_now - cpu, waited_now - waited
        # What it waited just before the key is known only once it runs again.
        return Answer(wall * 1e3, max(cpu, wall - waited) * 1e3, cpu * 1e3)

    def _counters(self) -> tuple[float, float]:
        """Seconds that the main thread has computed, and those it has waited for a processor."""
        pid = self.process.pid
        try:
            found = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text(encoding="ascii").split()
        except OSError:
            return 0.0, 0.0
        return int(found[0]) / 1e9, int(found[1]) / 1e9

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextlib.contextmanager
def watched(run: Path) -> Iterator[Watched]:
    """A dashboard that is ended afterwards."""
    dashboard = Watched(run)
    try:
        yield dashboard
    finally:
        dashboard.close()


def measure(run: Path, keys: int) -> dict[str, Any]:
    """Key to picture, ms: to another page and to another x axis, while a run loads and afterwards.

    The run is opened again until ``keys`` keys of each kind were answered while it loaded.
    """
    found: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        found[f"{name}_loading"] = _summary(_while_loading(run, kind, keys))
    with watched(run) as dashboard:
        dashboard.wait_for(_LOADED)
        for name, kind in _KINDS.items():
            press = kind()
            found[name] = _summary([_next(dashboard, press) for _ in range(keys)])
            dashboard.press(b"1")  # the page that has the x axis
    return found


Keys = Iterator[tuple[bytes, str]]


def _pages() -> Keys:
    """The key of each page in turn, and its footer."""
    from nanogpt_cli.tui import keys

    while True:
        for page in _PAGES:
            row = keys.footer(page, SIZE[0], False)
            yield keys.number(page).encode(), "".join(text for text, _ in row).rstrip()


def _axes() -> Keys:
    while True:
        for note in _AXES:
            yield b"x", note


_KINDS: Final = {"page": _pages, "axis": _axes}


def _while_loading(run: Path, presses: Callable[[], Keys], keys: int) -> list[Answer]:
    found: list[Answer] = []
    while len(found) < keys:
        with watched(run) as dashboard:
            dashboard.wait_for("reading")
            before, press = len(found), presses()
            while len(found) < keys and not dashboard.loaded:
                found.append(_next(dashboard, press))
            if len(found) == before:
                raise UserError("the run is too short to be loading when a key comes", "")
    return found


def _next(dashboard: Watched, press: Keys) -> Answer:
    for _ in dashboard.frames(_PAUSE):
        pass
    return dashboard.answer(*next(press))


def _summary(answers: list[Answer]) -> dict[str, float]:
    """Median and maximum of what the answers took."""
    return {
        f"{name}_{kind}": of([getattr(answer, name) for answer in answers])
        for name in ("ready", "wall", "cpu")
        for kind, of in (("median", statistics.median), ("max", max))
    }
