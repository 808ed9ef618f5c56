"""The dashboard as a person meets it: a real trainer, a real terminal, real keys."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import LIMIT

from nanogpt_cli import __file__ as package

TMUX = shutil.which("tmux")
pytestmark = pytest.mark.skipif(TMUX is None, reason="tmux is not installed")
PATIENCE = 180.0


class Terminal:
    """A tmux server of its own with one shell in it."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.socket = folder / "tmux.sock"
        environment = {
            **os.environ, "NANOGPT_HOME": str(home), "OMP_NUM_THREADS": "1", "PS1": "prompt> ",
            "PYTHONPATH": str(Path(package).parents[1]), "TERM": "xterm-256color",
        }  # fmt: skip
        environment.pop("NO_COLOR", None)
        self._tmux("-f", os.devnull, "new-session", "-d", "-x", "120", "-y", "40",
                   "sh", cwd=folder, env=environment)  # fmt: skip
        self.type("PS1='prom''pt> '; clear")
        self.wait("prompt>")

    def _tmux(self, *arguments: str, **settings: object) -> str:
        done = subprocess.run(
            [str(TMUX), "-S", str(self.socket), *arguments],
            capture_output=True, text=True, check=True, timeout=LIMIT, **settings,  # type: ignore[call-overload]
        )  # fmt: skip
        return str(done.stdout)

    def keys(self, *names: str) -> None:
        for name in names:
            self._tmux("send-keys", name)

    def type(self, text: str) -> None:
        self._tmux("send-keys", "-l", text)
        self.keys("Enter")

    def resize(self, width: int, height: int) -> None:
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    def on_alternate_screen(self) -> bool:
        return self._tmux("display-message", "-p", "#{alternate_on}").strip() == "1"

    def wait(self, *words: str) -> str:
        """The screen once it shows all of ``words``."""
        return until(lambda: self.screen() if all(w in self.screen() for w in words) else "",
                     lambda: f"{words} not in\n{self.screen()}")  # fmt: skip

    def close(self) -> None:
        subprocess.run(
            [str(TMUX), "-S", str(self.socket), "kill-server"], capture_output=True, timeout=LIMIT
        )


def until(found: Callable[[], str], story: Callable[[], str]) -> str:
    """Poll until something is found; the machine may be slow, never the assertion."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.05)
    raise AssertionError(story())


@pytest.fixture
def terminal(tmp_path: Path, nanogpt_home: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, nanogpt_home)
    yield terminal
    terminal.close()


@pytest.fixture
def data(tmp_path: Path, nanogpt_home: Path) -> Path:
    """A small text, prepared."""
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be: that is the question.\n" * 400, encoding="utf-8")
    environment = {**os.environ, "NANOGPT_HOME": str(nanogpt_home)}
    subprocess.run(
        [sys.executable, "-m", "nanogpt_cli", "prepare", str(text), "--tokenizer", "char",
         "--name", "tobe"],
        check=True, cwd=tmp_path, env=environment, capture_output=True, timeout=LIMIT,
    )  # fmt: skip
    return tmp_path


def events_of(run: Path) -> list[dict[str, object]]:
    try:
        lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def trainer_of(run: Path) -> int:
    started = [e for e in events_of(run) if e["type"] == "run_started"]
    return int(str(started[-1]["pid"]))


def fitting(shown: str, width: int) -> str:
    """The screen if it is a whole overview of that width."""
    lines = shown.splitlines()
    whole = len(lines) > 2 and "debug" in lines[0] and len(lines[1]) == width
    return shown if whole and "q leave" in shown and "╭─ loss" in lines[1] else ""


def test_train_look_around_leave_come_back_and_stop(data: Path, terminal: Terminal) -> None:
    nanogpt = f"{sys.executable} -m nanogpt_cli"
    settings = "--set data.name=tobe --set train.max_steps=1000000 --set train.eval_every=200"
    terminal.type("stty -a > before.txt; clear")
    terminal.type(f"{nanogpt} train debug --tui --out runs {settings}")
    terminal.wait("step", "loss", "5 Logs")
    run = data / "runs" / "debug"
    until(lambda: str(len(events_of(run)) > 50 or ""), lambda: f"no events in {run}")
    terminal.wait("tok/s", "● running")
    pid = trainer_of(run)

    for key, words in (
        ("2", ("layers × time", "by depth")),
        ("3", ("best validation loss",)),
        ("4", ("samples",)),
        ("5", ("events", "output")),
        ("?", ("this help", "incident")),
    ):
        terminal.keys(key)
        terminal.wait(*words)
    terminal.keys("q")  # closes the help
    terminal.wait("enter open")
    until(lambda: str("this help" not in terminal.screen() or ""), terminal.screen)
    terminal.keys("1")
    terminal.wait("gradient norm")
    for width, height in ((80, 24), (60, 15), (200, 60), (120, 40)):
        terminal.resize(width, height)
        until(lambda w=width: fitting(terminal.screen(), w), terminal.screen)  # type: ignore[misc]

    terminal.keys("K")
    terminal.wait("Save a checkpoint now?")
    terminal.keys("y")
    until(
        lambda: str([e for e in events_of(run) if e["type"] == "command"] or ""),
        lambda: "the trainer never answered",
    )

    terminal.keys("q")
    terminal.wait("training continues", "prompt>")
    assert not terminal.on_alternate_screen()
    assert alive(pid)
    terminal.type("clear; stty -a > after.txt")
    until(lambda: ((data / "after.txt").exists() and (data / "after.txt").read_text()) or "",
          terminal.screen)  # fmt: skip
    assert (data / "after.txt").read_text() == (data / "before.txt").read_text()

    terminal.type(f"{nanogpt} watch --out runs")
    terminal.wait("● running", "tok/s")
    terminal.keys("Q")
    terminal.wait("Stop training?")
    terminal.keys("y")
    terminal.wait("runs/debug", "stop", "prompt>")  # asked to, or stopped already
    until(lambda: str(not alive(pid) or ""), lambda: "the trainer did not stop")
    last = events_of(run)[-1]
    assert (last["type"], last["reason"]) == ("run_ended", "stopped")
    assert (run / str(last["checkpoint"])).is_dir()
    terminal.type(f"clear; {nanogpt} watch --out runs")
    terminal.wait("● stopped")
    terminal.keys("q")
    terminal.wait("prompt>")


def test_a_killed_trainer_is_said_to_be_dead(data: Path, terminal: Terminal) -> None:
    nanogpt = f"{sys.executable} -m nanogpt_cli"
    settings = "--set data.name=tobe --set train.max_steps=1000000"
    terminal.type(f"{nanogpt} train debug --tui --out runs {settings}")
    terminal.wait("● running")
    os.kill(trainer_of(data / "runs" / "debug"), signal.SIGKILL)
    terminal.wait("✖ crashed")
    terminal.keys("P")
    terminal.wait("no trainer would answer")
    terminal.keys("q")
    terminal.wait("prompt>")
    assert not terminal.on_alternate_screen()
    terminal.type(f"clear; {nanogpt} watch debug --out runs --once --size 80x24")
    terminal.wait("✖ crashed")


def test_a_trainer_that_fails_at_once_shows_why(data: Path, terminal: Terminal) -> None:
    nanogpt = f"{sys.executable} -m nanogpt_cli"
    vast = "--set model.n_layer=400 --set model.n_embd=16384"  # which only the trainer refuses
    terminal.type(f"{nanogpt} train debug --tui --out runs --set data.name=tobe {vast}")
    terminal.wait("✖")
    terminal.keys("5")
    terminal.wait("output ─ the run")
    terminal.keys("q")
    terminal.wait("prompt>")


@pytest.mark.parametrize(
    ("before", "option"),
    [("NO_COLOR=1", ""), ("TERM=screen COLORTERM=", ""), ("TERM=xterm COLORTERM=", "--ascii"),
     ("TERM=linux", ""), ("TERM=xterm COLORTERM=truecolor", "--theme ansi-dark")],
)  # fmt: skip
def test_odd_terminals(recordings: Path, terminal: Terminal, before: str, option: str) -> None:
    command = f"{sys.executable} -m nanogpt_cli watch {recordings}/small-lr3e-4 {option}"
    terminal.type(f"{before} {command}")
    shown = terminal.wait("finished", "layers", "q leave")
    few = "TERM=" in before and "truecolor" not in before
    assert ("@@@" in shown) == few  # the heat map, of which 16 colours would leave three shades
    if option == "--ascii" or "linux" in before:
        inside = "".join(line[1:60] for line in shown.splitlines()[2:20])
        assert inside.isascii()
    terminal.keys("2")
    terminal.wait("by depth")
    terminal.keys("q")
    terminal.wait("prompt>")


def test_the_machine_is_shown_without_a_run(terminal: Terminal) -> None:
    terminal.type(f"{sys.executable} -m nanogpt_cli doctor --watch")
    terminal.wait("CPU %", "memory in use, GiB", "disk free, GiB", "q leave")
    terminal.keys("q")
    terminal.wait("next: nanogpt doctor")
    assert not terminal.on_alternate_screen()


def test_several_runs_open_as_a_list(recordings: Path, terminal: Terminal) -> None:
    terminal.type(f"{sys.executable} -m nanogpt_cli watch --out {recordings}")
    terminal.wait("3 runs", "loss curve", "small-lr3e-4")
    terminal.keys("Enter")
    terminal.wait("learning rate")
    terminal.keys("Escape")
    terminal.wait("loss curve")
    terminal.keys("q")
    terminal.wait("next: nanogpt", "prompt>")


def test_a_bug_is_one_line_and_the_terminal_is_given_back(
    recordings: Path, terminal: Terminal, tmp_path: Path
) -> None:
    program = tmp_path / "broken.py"
    program.write_text(
        "from nanogpt_cli import cli\n"
        "from nanogpt_cli.tui.pages.layers import LayersPage\n"
        "LayersPage.update = lambda *_: 1 / 0\n"
        "cli.main()\n"
    )
    terminal.type(f"{sys.executable} {program} watch {recordings}/small-lr3e-4; echo exit $?")
    terminal.wait("learning rate")
    terminal.keys("2")
    shown = terminal.wait("bug in nanogpt-cli: ZeroDivisionError", "exit 1")
    assert not terminal.on_alternate_screen()
    assert len(shown.strip().splitlines()) < 8
