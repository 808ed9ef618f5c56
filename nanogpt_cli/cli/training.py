"""Running a trainer from the terminal: signals, lock, sinks, the process behind the dashboard."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from nanogpt_cli import events
from nanogpt_cli.cli import console
from nanogpt_cli.errors import UserError
from nanogpt_cli.runlog import EventWriter, RunFolder

if TYPE_CHECKING:
    from nanogpt_cli.core.trainer import Trainer
    from nanogpt_cli.recipe import Recipe


def run(
    recipe: Recipe, data: Path, folder: RunFolder, *, resume: bool, source: str
) -> events.RunEnded:
    """Train in this process until the end, Ctrl-C or SIGTERM; returns the last event.

    Raises:
        UserError: another trainer holds the run, or something the user can fix went wrong.
    """
    from nanogpt_cli.cli.train_console import TrainConsole

    with _locked(folder), EventWriter(folder.events) as write, TrainConsole() as show:
        stop = _StopSignal()
        try:
            with stop.installed():
                trainer = _trainer(recipe, data, folder, resume=resume, source=source, stop=stop)
                last = _follow(trainer, write, show)
        except BaseException as error:
            write(_crash(error))
            raise
        finally:
            write.sync()
    return last


def _trainer(
    recipe: Recipe, data: Path, folder: RunFolder, *, resume: bool, source: str, stop: _StopSignal
) -> Trainer:
    from nanogpt_cli import files
    from nanogpt_cli.text.tokens import open_data

    tokens = open_data(data)
    files.remove_leftovers(folder.path)
    for leftover in files.remove_leftovers(folder.checkpoints):
        console.say(f"removed {leftover.name}, left by a killed save")
    from nanogpt_cli.core.trainer import Trainer

    model = _weights(source) if source else None
    trainer = Trainer(recipe, tokens, folder, should_stop=stop, start_from=model)
    if resume:
        _restore(trainer, folder)
    return trainer


def _weights(source: str) -> Any:
    """The model to begin with."""
    from nanogpt_cli.cli import sources

    return sources.resolve(source).model


def _restore(trainer: Trainer, folder: RunFolder) -> None:
    from nanogpt_cli.core import checkpoint

    newest, problems = checkpoint.newest_intact(folder)
    for damaged, problem in problems:
        console.say(f"skipped: {problem}")
        console.say(f"  it is kept as {checkpoint.set_aside(damaged).name}")
    if newest is None:
        raise UserError(
            f"run {folder.name} has no whole checkpoint to go on from",
            "start it again: nanogpt train RECIPE",
        )
    trainer.restore(newest)
    console.say(f"going on from {newest}")


def _follow(trainer: Trainer, write: EventWriter, show: Any) -> events.RunEnded:
    for event in trainer.run():
        write(event)
        show(event)
    assert isinstance(event, events.RunEnded)
    return event


def _crash(error: BaseException) -> events.RunEnded:
    """The last line of a run that did not end in order."""
    expected = isinstance(error, UserError | KeyboardInterrupt)
    text = str(error) if expected else "".join(traceback.format_exception(error))
    import time

    return events.RunEnded(
        time=time.time(),
        step=0,
        reason="stopped" if isinstance(error, KeyboardInterrupt) else "error",
        message=text[-4000:],
    )


class _StopSignal:
    """True once SIGINT or SIGTERM has come; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        console.say("stopping: finishing this step and saving (Ctrl-C again to stop at once)")

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """Hold the run's lock, so that no second trainer writes to it."""
    import filelock

    lock = filelock.FileLock(folder.lock)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"run {folder.name} is being trained by another process",
            f"watch it: nanogpt watch {folder.path}",
        ) from None
    try:
        yield
    finally:
        lock.release()


def run_with_dashboard(folder: RunFolder, arguments: list[str]) -> None:
    """Train in a child process of its own session and show its run folder.

    Without a terminal the child is followed by plain lines instead.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or os.environ.get("TERM") == "dumb":
        console.say("no terminal for the dashboard: showing plain progress instead")
        child = subprocess.run([sys.executable, "-m", "nanogpt_cli", "train", *arguments])
        sys.exit(child.returncode)
    with folder.stdout.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nanogpt_cli", "train", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    from nanogpt_cli.tui.app import run_dashboard

    run_dashboard([folder.path])
    if process.poll() is None:
        console.say(f"training goes on (pid {process.pid})")
        console.next_command(f"nanogpt watch {folder.path}")
    else:
        console.next_command(f"nanogpt sample --run {folder.path}")
