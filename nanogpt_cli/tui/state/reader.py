"""Reader: reads and parses the logs of all runs in a thread, so that keys never wait for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from nanogpt_cli.tui.state.session import Piece, RunSession

_PIECE = 1 << 19  # bytes of a log that are read and parsed at once
_AHEAD = 8  # pieces that may wait to be folded: reading is not to run away from a busy screen
PATIENCE = 1.0  # seconds; a piece takes a hundredth of it
REST = 0.05  # seconds that a key is given to be answered


class Reader:
    """Reads the logs of ``sessions`` to their ends whenever asked, in a thread of its own.

    The thread reads and parses only; whoever draws takes the finished pieces and folds them into
    the views, which costs little and keeps every view consistent without a lock. ``arrived`` is
    called in the thread when there is something to take.
    """

    def __init__(self, sessions: Sequence[RunSession], arrived: Callable[[], None]) -> None:
        self._sessions = sessions  # may grow
        self._arrived = arrived
        self._changed = threading.Condition()
        self._ready: deque[tuple[RunSession, Piece | Exception]] = deque()
        self._asked = self._reading = self._stopped = self._tired = False
        self._thread = threading.Thread(target=self._run, name="log reader", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._asked = True
        self._thread.start()

    def ask(self) -> None:
        """Read all logs to their ends once more."""
        with self._changed:
            self._asked = True
            self._changed.notify_all()

    def rest(self) -> None:
        """Pause once, before the next piece: the answer to a key needs the interpreter's lock."""
        self._tired = True

    def take(self) -> tuple[RunSession, Piece | Exception] | None:
        """The next piece or failure; ``None`` if there is none now."""
        with self._changed:
            if not self._ready:
                return None
            self._changed.notify_all()
            return self._ready.popleft()

    @property
    def idle(self) -> bool:
        """Whether everything that was asked for has been read and taken."""
        with self._changed:
            return not (self._asked or self._reading or self._ready)

    def stop(self) -> None:
        """Read no further than the piece in hand, which can be taken like those before it.

        A piece that takes longer than ``PATIENCE``, from a file system that hangs, is left behind.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)

    def _run(self) -> None:
        while self._wait_for(lambda: self._asked):
            with self._changed:
                self._asked, self._reading = False, True
            self._read_all()
            with self._changed:
                self._reading = False
            self._arrived()

    def _wait_for(self, true: Callable[[], bool]) -> bool:
        """Wait until something holds; returns False if the reader was stopped instead."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or true())
            return not self._stopped

    def _read_all(self) -> None:
        """Read every log to its present end, a piece of each in turn."""
        pending = [session for session in self._sessions if not session.failure]
        while pending:
            for session in list(pending):
                self._rest_if_tired()
                try:
                    found: Piece | Exception = session.read(_PIECE)
                except Exception as error:  # it would end the thread unseen; the screen shows it
                    found = error
                if not self._hand_over(session, found):
                    return
                if isinstance(found, Exception) or found.at_end:
                    pending.remove(session)

    def _rest_if_tired(self) -> None:
        with self._changed:
            if self._tired:
                self._changed.wait_for(lambda: self._stopped, REST)
            self._tired = False

    def _hand_over(self, session: RunSession, found: Piece | Exception) -> bool:
        """Offer a piece once there is room; returns False if the reader was stopped."""
        goes_on = self._wait_for(lambda: len(self._ready) < _AHEAD)
        with self._changed:
            self._ready.append((session, found))
        if goes_on:
            self._arrived()
        return goes_on
