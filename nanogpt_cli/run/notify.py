"""Telling somebody elsewhere: the sink that sends a run's news to an address."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

from nanogpt_cli.run import events
from nanogpt_cli.run.addresses import hidden
from nanogpt_cli.run.news import News
from nanogpt_cli.run.post import post

_WAITING = 8  # messages
LAST_S = 2.0  # seconds that the end of a run waits for its last message


@contextlib.contextmanager
def opened(
    target: str, name: str, failed: Callable[[str], None]
) -> Iterator[Callable[[events.Event], None]]:
    """A sink that sends the news among a run's events, from a thread of its own.

    It never raises and never waits, but for ``LAST_S`` at the end of the block.

    Args:
        target: a whole address, or "" to send nothing.
        name: of the run.
        failed: receives one sentence, from any thread, the first time something fails.
    """
    if not target:
        yield lambda _: None
        return
    sender = _Sender(target, failed)
    news = News(name)

    def take(event: events.Event) -> None:
        if text := news(event):
            sender.send(text)

    sender.start()
    try:
        yield take
    finally:
        sender.finish()


class _Sender(threading.Thread):
    """Sends one message after the other; a daemon, so that a server that hangs ends nothing."""

    def __init__(self, target: str, failed: Callable[[str], None]) -> None:
        super().__init__(name="notify", daemon=True)
        self._target, self._failed = target, failed
        self._texts: queue.Queue[str | None] = queue.Queue(_WAITING)
        self._said = False

    def send(self, text: str | None) -> None:
        try:
            self._texts.put_nowait(text)
        except queue.Full:
            self._say("it is too slow, and messages are left out")

    def finish(self) -> None:
        self.send(None)
        self.join(LAST_S)
        if self.is_alive():
            self._say(f"the last message was not taken within {LAST_S:.0f} s")

    def run(self) -> None:
        while (text := self._texts.get()) is not None:
            if problem := post(self._target, text):
                self._say(problem)

    def _say(self, problem: str) -> None:
        if not self._said:
            self._said = True
            self._failed(f"notifying {hidden(self._target)} failed: {problem}")
