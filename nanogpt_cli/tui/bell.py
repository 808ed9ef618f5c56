"""Ringing the terminal of a dashboard: news of the runs it shows, and trainers that died."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from nanogpt_cli.run import events
from nanogpt_cli.run.news import News, bell_of
from nanogpt_cli.tui.state.session import RunSession
from nanogpt_cli.tui.state.view import RunView


@dataclass
class _Heard:
    """What of a run was there when it was looked at last."""

    view: RunView
    last: events.Event | None
    word: str
    news: News = field(init=False)

    def __post_init__(self) -> None:
        self.news = News(self.view.name)


class Bell:
    """Watches sessions for news; what is in a log when it is opened is none.

    Args:
        asked: one of ``news.BELLS`` for every run; "" for what the recipe of each run says.
    """

    def __init__(self, asked: str = "") -> None:
        self._asked = asked
        self._heard: dict[int, _Heard] = {}

    def listen(self, sessions: Sequence[RunSession]) -> list[tuple[str, str]]:
        """The news since the last call: (bell, text)."""
        return [pair for session in sessions for pair in self._of(session)]

    def _of(self, session: RunSession) -> list[tuple[str, str]]:
        view, started = session.view, session.view.started
        bell = self._asked or (bell_of(started.recipe) if started else "off")
        if session.loading or bell == "off":
            return []
        last = view.happenings[-1] if view.happenings else None
        word = session.state().word
        heard = self._heard.get(id(session))
        if heard is None or heard.view is not view:
            self._heard[id(session)] = _Heard(view, last, word)
            return []
        newest_first = takewhile(lambda event: event is not heard.last, reversed(view.happenings))
        texts = [heard.news(event) for event in reversed(list(newest_first))]
        if word == "crashed" != heard.word:
            texts.append(f"{view.name}: crashed after {view.step} steps")
        heard.last, heard.word = last, word
        return [(bell, text) for text in texts if text]
