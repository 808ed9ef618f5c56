"""One connection: the ``ssh`` program, the loop on its far side, and answers that do not hang."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence

from nanogpt_cli.errors import UserError
from nanogpt_cli.run.remote import far_side

# Seconds: for an answer, and for the first one, before which somebody may have to type a password
# (servers wait two minutes for that).
PATIENCE, FIRST_PATIENCE = 30.0, 150.0
_LONGEST_LINE = 1 << 16
_LONGEST_GREETING = 1 << 20  # what a login shell may print before our loop speaks
_OPTIONS = (
    "-T", "-a", "-x",
    "-o", "LogLevel=ERROR", "-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes",
    # A dead network is noticed within 20 s; nothing else would end the wait.
    "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
    "-o", "Compression=yes",
)  # fmt: skip


class LostError(Exception):
    """The connection has ended, or was never made; the text says why, in one line."""


class Wire:
    """A connection to a host on which the loop of ``far_side`` runs.

    Args:
        destination: of ``ssh``.
        paths: the folders that questions are about, counted from 1.
        asking: whether ``ssh`` may ask for a password or about a host's key on the terminal. If
            not, it is a session of its own, which no key typed into the terminal reaches.

    Raises:
        UserError: there is no program ``ssh``.
        LostError: the connection cannot be made.
    """

    def __init__(self, destination: str, paths: Sequence[str], *, asking: bool) -> None:
        script = far_side.script(paths)
        more = () if asking else ("-o", "BatchMode=yes")
        words = ["ssh", *_OPTIONS, *more, "--", destination, far_side.command(len(script))]
        # A file and no pipe: a master connection that ssh leaves behind (ControlPersist) would
        # keep a pipe open for ever.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        try:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints,
                bufsize=0, start_new_session=not asking,
            )  # fmt: skip
        except FileNotFoundError:
            self._complaints.close()
            raise UserError(
                "ssh is not installed, and HOST:PATH is reached through it",
                "install OpenSSH's client (package openssh-client), or copy the run folder here",
            ) from None
        self._buffer = bytearray()
        self._patience = FIRST_PATIENCE if asking else PATIENCE
        try:
            self.ask(script)
            self.host = self._greeting()
        except BaseException:
            self.close()
            raise
        self._patience = PATIENCE

    def ask(self, question: str | bytes) -> None:
        """Send a question, or what belongs to one."""
        data = question.encode("ascii") if isinstance(question, str) else question
        assert self._process.stdin is not None
        try:
            while data:
                data = data[self._process.stdin.write(data) :]
        except OSError:
            raise self._lost() from None

    def line(self) -> list[str]:
        """The words of the next line of an answer."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LONGEST_LINE:
                raise LostError("the far side does not answer as it should")
            self._fill()
        text = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return os.fsdecode(text).split(" ")

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes of an answer."""
        while len(self._buffer) < count:
            self._fill()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def hang_up(self) -> None:
        """Make whoever waits for an answer give up; safe from another thread."""
        self._process.terminate()

    def close(self) -> None:
        """End the connection; the loop on the far side ends with its input."""
        process = self._process
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._complaints.close()

    def _greeting(self) -> str:
        """Skip what a login shell prints, until the loop speaks; the far machine's own name."""
        skipped = 0
        while skipped < _LONGEST_GREETING:
            words = self.line()
            if os.fsencode(words[0]) == far_side.MAGIC and len(words) == 2:
                return words[1]
            skipped += len(" ".join(words)) + 1
        raise LostError("its login shell prints without end")

    def _fill(self) -> None:
        """Wait for more bytes, but not for ever."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        if os.name == "posix" and not select.select([descriptor], [], [], self._patience)[0]:
            raise LostError(f"no answer for {self._patience:.0f} s")
        data = os.read(descriptor, 1 << 18)
        if not data:
            raise self._lost()
        self._buffer += data

    def _lost(self) -> LostError:
        """Why ``ssh`` has ended, in its own last words."""
        deadline = time.monotonic() + 5
        while (code := self._process.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        self._complaints.seek(0)
        lines = list(_words(self._complaints.read(_LONGEST_LINE)))
        if lines:
            return LostError(lines[-1])
        if code not in (None, 255):
            return LostError(f"the remote machine has no POSIX shell to run (exit code {code})")
        return LostError("the connection was closed")


def _words(complaints: bytes) -> Iterator[str]:
    for line in complaints.decode("utf-8", "replace").splitlines():
        text = line.strip().removeprefix("ssh: ").rstrip(".")
        if text.strip("@ ") and not text.startswith("Warning:"):
            yield text
