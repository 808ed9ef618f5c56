"""A terminal that is told: the bytes that ``train`` and the dashboard send it."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "tui"))

import recorded

from nanogpt_cli.cli import app, console, guard
from nanogpt_cli.cli.train import lines
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.tui.bell import Bell
from nanogpt_cli.tui.state.session import RunSession

STARTED = events.RunStarted(name="small", max_steps=9, recipe={"log": {"bell": "osc9"}})
STEP = events.Step(step=1, loss=4.0, lr=0.1, grad_norm=1.0, tokens=8, tokens_per_s=1.0)
ENDED = events.RunEnded(step=9, reason="finished")
ALARM = events.Alarm(step=2, kind="stuck", severity="warning", message="it is\x1b stuck")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, *told: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """What ``train`` writes to stderr for these events."""
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    console.stderr.cache_clear()
    with guard.guarded(), lines.TrainConsole() as show:
        for event in told:
            if isinstance(event, Exception):
                raise event
            show(event)
    return stream.getvalue()


def test_train_tells_a_terminal_and_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    told = (STARTED, STEP, ALARM, ENDED)
    text = shown(Terminal(), *told, monkeypatch=monkeypatch)
    assert text.count("\x1b]9;nanogpt: small: ") == 2
    assert "\x1b]9;nanogpt: small: finished after 9 steps\a" in text
    assert "\x1b]" not in shown(io.StringIO(), *told, monkeypatch=monkeypatch)
    silent = replace(STARTED, recipe={})
    assert "\x1b]" not in shown(Terminal(), silent, STEP, ENDED, monkeypatch=monkeypatch)


def test_train_tells_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    with pytest.raises(OSError, match="full"):
        shown(stream, STARTED, STEP, OSError("full"), monkeypatch=monkeypatch)
    assert "\x1b]9;nanogpt: small: failed after 1 step: full\a" in stream.getvalue()


def test_a_dashboard_rings_for_what_is_new_alone(tmp_path: Path) -> None:
    recorded.write_run(tmp_path / "good", steps=30, max_steps=60)
    session = RunSession(tmp_path / "good", clock=lambda: recorded.START)
    session.poll(1 << 22, float("inf"))
    asked, by_recipe = Bell("bell"), Bell()
    assert asked.listen([session]) == []
    with EventWriter(session.folder.events) as write:
        write(replace(ALARM, time=recorded.START))
        write(replace(ENDED, time=recorded.START + 1))
    session.poll(1 << 22, float("inf"))
    assert asked.listen([session]) == [
        ("bell", "good: step 2: warning: it is\\x1b stuck"),
        ("bell", "good: finished after 9 steps"),
    ]
    assert asked.listen([session]) == []
    assert by_recipe.listen([session]) == [], "its recipe asks for none"


def test_an_unknown_bell_is_refused(tmp_path: Path) -> None:
    recorded.write_run(tmp_path / "good", steps=3, max_steps=60)
    result = CliRunner().invoke(app, ["watch", str(tmp_path / "good"), "--once", "--bell", "gong"])
    assert isinstance(result.exception, UserError)
    assert "no bell 'gong'" in str(result.exception)
