"""Driving a trainer over a run folder: its lock, its log, its sinks, and the record of a crash.

Every program that trains into a folder takes its events from ``drive``: the command, the first of
several ranks, the Python API.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from nanogpt_cli import files, shell
from nanogpt_cli.errors import UserError
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run import addresses, events, history, notify, sinks
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.training.checkpoints import retention
from nanogpt_cli.training.monitor import Monitor
from nanogpt_cli.training.trainer import Trainer

Report = Callable[[str], None]
# Events at the end of a log in which alarms about the machine are looked for.
_RECALLED = 100_000


def drive(
    run: RunFolder,
    recipe: Recipe,
    start: Callable[[], Trainer],
    *,
    resume: bool,
    report: Report = lambda _: None,
) -> Generator[events.Event, None, None]:
    """Train, yielding every event once it is logged; the last one is ``RunEnded``.

    Whoever leaves the loop before its end closes the generator (``contextlib.closing``), which ends
    the run. A sink that fails is left out and the run goes on.

    Args:
        run: its folder, which exists.
        recipe: names the sinks and who is told, and is written down when a resumed run has begun.
        start: makes the trainer, restored if the run is resumed.
        resume: continue a run that has events already.
        report: receives lines of commentary.

    Raises:
        UserError: another trainer holds the run, it cannot begin, or its log cannot be written. A
            resume that is refused leaves the run as it was.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_locked(run))
        write = stack.enter_context(EventWriter(run.events))
        failed: list[str] = []
        stack.callback(_report_all, failed, report)  # what fails when the run ends is in no log
        others = stack.enter_context(sinks.opened(recipe.log.sinks, run, failed.append))
        target = _target(recipe, report)
        tell = stack.enter_context(notify.opened(target, run.name, failed.append))
        trainer: Trainer | None = None

        def log(event: events.Event) -> None:
            try:
                write(event)
            except OSError:
                with files.readable_os_errors("write the event log", run.events):
                    raise
            for take in (*others, tell):
                take(event)

        try:
            _remove_leftovers(run, report)
            trainer = start()
            if resume:
                _write_recipe(run, recipe)
            monitor = Monitor(trainer, run.path)
            if resume:
                _recall(monitor, run, trainer.progress.step)
            monitor.start()
            stack.callback(monitor.stop)
            for event in monitor.told():
                log(event)
                yield event
                while failed:
                    note = events.Note(
                        time=time.time(), step=trainer.progress.step, message=failed.pop(),
                        level="warning",
                    )  # fmt: skip
                    log(note)
                    yield note
        except BaseException as error:
            if trainer is not None or not resume:
                last = _crash(error, trainer.progress.step if trainer else 0)
                tell(last)
                with contextlib.suppress(OSError):  # the disk may be what failed
                    write(last)
            raise
        finally:
            with contextlib.suppress(OSError):
                write.sync()


def _report_all(texts: list[str], report: Report) -> None:
    for text in texts:
        report(text)


def _target(recipe: Recipe, report: Report) -> str:
    """The address that is told how the run goes; "" for none."""
    found = addresses.address(recipe.log.notify)
    if recipe.log.notify and not found:
        report(
            f"nobody is told: of log.notify only {recipe.log.notify} is recorded; the whole URL "
            f"belongs into the environment, {addresses.ENVIRONMENT}"
        )
    return found


def _recall(monitor: Monitor, run: RunFolder, step: int) -> None:
    """Let the alarms about the machine know what the log of a resumed run says."""
    for event in history.newest(run.events, _RECALLED, step=step):
        monitor.alarms.recall(event)


def newest_checkpoint(run: RunFolder, report: Report, before: int = 0) -> Path:
    """The newest intact checkpoint of a run; damaged ones that are newer are named and set aside.

    Args:
        run: the run.
        report: receives lines of commentary.
        before: only those of earlier steps count; 0: all.

    Raises:
        UserError: there is none; the run is left as it was.
    """
    newest, problems = retention.newest_intact(run, before)
    for damaged, problem in problems:
        report(f"skipped: {problem}")
        if newest is not None:
            report(f"  it is kept as {retention.set_aside(damaged).name}")
    if newest is None and before:
        there = ", ".join(map(str, retention.list_steps(run))) or "none"
        raise UserError(
            f"run {run.name} has no intact checkpoint before step {before}; there are: {there}",
            f"begin it again: {shell.hint('train', run.recipe)}",
        )
    if newest is None:
        raise UserError(
            f"run {run.name} has no intact checkpoint to resume from",
            f"start it again: {shell.hint('train', run.recipe)}",
        )
    report(f"resuming from {newest}")
    return newest


def _remove_leftovers(run: RunFolder, report: Report) -> None:
    """Remove what a killed trainer left half-written."""
    files.remove_leftovers(run.path)
    for leftover in files.remove_leftovers(run.checkpoints):
        report(f"removed {leftover.name}, left by a killed save")


def _write_recipe(run: RunFolder, recipe: Recipe) -> None:
    """Keep what a resumed run was asked to change."""
    text = recipe_files.to_toml(recipe)
    with files.readable_os_errors("write the recipe", run.recipe):
        if not run.recipe.is_file() or run.recipe.read_text(encoding="utf-8") != text:
            files.write_text(run.recipe, text)


def _crash(error: BaseException, step: int) -> events.RunEnded:
    """The last line of a run that did not end in order."""
    stopped = isinstance(error, KeyboardInterrupt | GeneratorExit)
    expected = stopped or isinstance(error, UserError)
    text = str(error) if expected else "".join(traceback.format_exception(error))
    reason = "stopped" if stopped else "error"
    return events.RunEnded(time=time.time(), step=step, reason=reason, message=text[-4000:])


@contextlib.contextmanager
def _locked(run: RunFolder) -> Iterator[None]:
    """Hold the run's lock, so that no second trainer writes to it."""

    def refuse() -> None:
        raise UserError(
            f"run {run.name} is being trained by another process",
            f"watch it: {shell.hint('watch', run.path)}",
        ) from None

    with files.locked(run.lock, refuse):
        yield
