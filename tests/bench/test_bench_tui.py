"""The measurement of keys: a real dashboard in a pseudo-terminal. No figure is judged here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "tui"))

from recorded import write_run

from nanogpt_cli.bench import tui_keys
from nanogpt_cli.cli import app
from nanogpt_cli.errors import UserError
from nanogpt_cli.tui import timing

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo-terminals")


def test_the_frame_that_answers_a_key_is_found(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=300, max_steps=300, ended="finished")
    with tui_keys.watched(tmp_path / "run") as dashboard:
        dashboard.wait_for("finished  step")
        assert dashboard.loaded
        for press in (tui_keys._pages(), tui_keys._axes()):
            answer = tui_keys._next(dashboard, press)
            assert answer.wall >= answer.ready >= answer.cpu >= 0
            dashboard.press(b"1")
        dashboard.press(b"q")
        with pytest.raises(UserError, match="the dashboard ended"):
            dashboard.wait_for("what no page shows")


def test_an_update_of_overview_is_timed() -> None:
    assert timing.overview_update(steps=200, updates=2) > 0


def test_a_number_of_keys_is_checked() -> None:
    done = CliRunner().invoke(app, ["bench", "tui", "--keys", "-1"])
    assert isinstance(done.exception, UserError)
    assert "--keys -1" in done.exception.message
