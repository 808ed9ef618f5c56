"""Reading in a thread: keys are answered meanwhile, and views are those of the slow twin."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import clock, press, screen, settle, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import LIMIT
from recorded import recorded_events
from textual.events import Key

from nanogpt_cli.run import events
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.tui.app import Dashboard
from nanogpt_cli.tui.state import reader as module
from nanogpt_cli.tui.state import session as sessions
from nanogpt_cli.tui.state.reader import Reader
from nanogpt_cli.tui.state.session import Piece, RunSession
from nanogpt_cli.tui.state.view import RunView


class Gated(RunSession):
    """A session whose reading stops before its second piece until the gate is opened."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, clock=clock)
        self.gate, self.held = threading.Event(), threading.Event()
        self.pieces = 0

    def read(self, max_bytes: int = 1 << 20) -> Piece:
        """A small first piece; the next one waits at the gate."""
        if self.pieces:
            self.held.set()
            assert self.gate.wait(LIMIT)
        self.pieces += 1
        return super().read(50_000 if self.pieces == 1 else max_bytes)


async def test_keys_are_answered_while_the_reader_is_in_the_middle_of_a_log(runs: Path) -> None:
    session = Gated(runs / "small-shakespeare")
    app = Dashboard([session])
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: session.held.is_set() and app.looks > 0)
        assert session.loading
        half = session.view.step
        assert 0 < half < 2000
        await press(pilot, "5")
        assert "what happened" in screen(pilot)
        await press(pilot, "1", "x")
        assert "by tokens" in screen(pilot)
        assert f"step {half:,}/" in screen(pilot)
        assert "reading" in screen(pilot).splitlines()[0]
        assert session.view.step == half
        session.gate.set()
        await until(pilot, lambda: not session.loading)
        await settle(pilot)
        assert "step 2,000/" in screen(pilot)
        assert "reading" not in screen(pilot).splitlines()[0]


@pytest.mark.parametrize("key", ["P", "M"])
async def test_before_the_first_piece_nobody_is_asked_to_command_a_trainer(
    runs: Path, key: str
) -> None:
    """The run may have ended: it had been taken for one that waits."""
    session = Gated(runs / "small-shakespeare")
    session.pieces = 1  # the first piece waits as well
    app = Dashboard([session])
    async with app.run_test(size=(120, 40)) as pilot:
        try:
            await until(pilot, session.held.is_set)
            assert (session.state().word, session.state().live) == ("reading", False)
            await pilot.press(key)
            await pilot.pause()
            assert len(app.screen_stack) == 1
        finally:
            session.gate.set()
        await until(pilot, lambda: not session.loading)
        assert (session.state().word, session.state().live) == ("running", True)


async def test_leaving_waits_for_no_log(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    session = Gated(runs / "small-shakespeare")
    app = Dashboard([session])
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: session.held.is_set() and app.looks > 0)
        await pilot.press("Q")
    assert session.loading, "the gate was never opened"
    assert app.return_value is not None
    session.gate.set()


async def test_a_failure_of_the_reader_is_shown_in_one_line(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = RunSession(runs / "small-shakespeare", clock=clock)
    other = RunSession(runs / "small-lr3e-4", clock=clock)

    def fail(_: int = 0) -> Piece:
        raise ZeroDivisionError("no such\nthing \x1b[2J")

    monkeypatch.setattr(session, "read", fail)
    app = Dashboard([session, other])
    async with app.run_test(size=(160, 40)) as pilot:
        await until(pilot, lambda: bool(session.failure) and other.view.step == 3000)
        await settle(pilot)
        shown = screen(pilot).splitlines()
        assert "unreadable" in shown[0]
        assert "ZeroDivisionError: no such thing" in shown[-1]
        assert "\x1b" not in screen(pilot)
        await press(pilot, "5")
        assert app.is_running
    assert "ZeroDivisionError" in session.problems()


async def test_what_is_read_while_the_dashboard_closes_is_no_error(runs: Path) -> None:
    """Its screens are gone, and the reader's thread has just delivered."""
    app = Dashboard([RunSession(runs / "small-shakespeare", clock=clock)])
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: not app.desk.loading)
    app._next_look, looks = None, app.looks
    app._fold()
    assert (app.looks, app._next_look) == (looks + 1, None)


async def test_a_run_that_is_opened_later_is_read_too(runs: Path) -> None:
    app = Dashboard([RunSession(runs / "deep", clock=clock)])
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: not app.desk.loading)
        added = RunSession(runs / "small-lr3e-4", clock=clock)
        app.desk.sessions.append(added)
        app.look_now()
        await until(pilot, lambda: not added.loading)
        assert added.view.step == 3000


def test_reading_does_not_run_away_from_whoever_folds(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as writer:
        for event in recorded_events(300, layers=2):
            writer(event)
    session = RunSession(tmp_path, clock=clock)
    read, seen = session.read, threading.Semaphore(0)
    reader = Reader([session], seen.release)
    session.read = lambda _=0: read(1000)  # type: ignore[assignment]
    reader.start()
    for _ in range(8):
        assert seen.acquire(timeout=LIMIT)
    assert len(reader._ready) == 8
    while session.loading:
        taken = reader.take()
        if taken is None:
            assert seen.acquire(timeout=LIMIT)
        else:
            assert isinstance(taken[1], Piece)
            session.fold(taken[1])
    reader.stop()
    assert session.view.step == 300


LINES = [
    (events.encode(event) + "\n").encode()
    for event in recorded_events(120, layers=2, nan=60, eval_every=40)
] + [b"garbage\n", b'{"type":"step"}\n', b'{"type":"hologram","time":1}\n', b"\n"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)  # fmt: skip
@given(st.lists(st.sampled_from(LINES), max_size=60), st.integers(1, 20_000), st.booleans())
def test_pieces_of_any_size_give_the_view_of_line_by_line(
    tmp_path: Path, found: list[bytes], size: int, whole_run: bool
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(LINES + found if whole_run else found))
    session, slow = RunSession(tmp_path, clock=clock), RunView(tmp_path.name)
    for event in EventReader(path).read_all():
        slow.fold(event)
    while not (piece := session.read(size)).at_end:
        session.fold(piece)
    session.fold(piece)
    assert len(session.view.steps) == len(slow.steps)
    for name in ("step", "tokens", "time", "loss", "grad_norm"):
        fast = session.view.steps[name]
        np.testing.assert_allclose(fast, slow.steps[name], rtol=1e-6, atol=1e-9, err_msg=name)
    for name in ("last_step", "last_eval", "samples", "alarms", "doing", "ended", "non_finite"):
        assert getattr(session.view, name) == getattr(slow, name), name
    assert list(session.view.happenings) == list(slow.happenings)


async def test_after_leaving_the_state_is_known_without_reading_all(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_ENDING_BYTES", 4000)
    session = RunSession(runs / "small-lr3e-4", clock=clock)
    read = session.read
    monkeypatch.setattr(session, "read", lambda _=0: read(5000))
    session.finish(max_seconds=-1.0)
    assert session.state().word == "finished"
    assert session.view.step == 3000
    assert len(session.view.steps) < 3000


async def test_keys_without_a_break_do_not_stop_the_reading(runs: Path) -> None:
    session = RunSession(runs / "small-shakespeare", clock=clock)
    app = Dashboard([session])
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.looks > 0 and not session.loading)
        with (runs / "small-shakespeare" / "events.jsonl").open("a") as log:
            log.write(events.encode(events.Note(message="new")) + "\n")
        known = len(session.view.happenings)

        def pressed_on() -> bool:
            app.post_message(Key("s", "s"))
            return len(session.view.happenings) > known

        await until(pilot, pressed_on)
