"""Running a trainer from the terminal: signals, lock, sinks, resuming; alone or as one rank."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from nanogpt_cli import shell
from nanogpt_cli.cli import console
from nanogpt_cli.cli.train.jobs import Job
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder

if TYPE_CHECKING:
    from nanogpt_cli.machine.distributed import Group
    from nanogpt_cli.training.trainer import Trainer

_SIGHUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # not on Windows


def run_alone(job: Job) -> events.RunEnded:
    """Train in this process until the end, Ctrl-C or SIGTERM; returns the last event.

    Raises:
        UserError: another trainer holds the run, or something the user can fix went wrong.
    """
    stop = _StopSignal()
    with _removed_unless_begun(job, stop):
        from nanogpt_cli.machine import joining  # torch: seconds in which Ctrl-C may come

        with joining.alone() as group:
            return _run(job, group, stop)


def run_as_rank(make_job: Callable[[bool], Job]) -> tuple[Job, events.RunEnded] | None:
    """Train as one of the processes a launcher started; the result on the first rank only.

    Args:
        make_job: called on the first rank, which tells the others; its argument says whether the
            launcher has started the job again.
    """
    from nanogpt_cli.machine import joining, ranks
    from nanogpt_cli.training import resuming

    with joining.joined() as group:
        with ranks.readable_losses(group, lambda: resuming.how_to_go_on(None, group)):
            again = joining.restarted(group)
            try:
                values = joining.from_first(group, lambda: make_job(again).to_json())
            except joining.AbsentError:
                raise typer.Exit(2) from None
        job = Job.from_json(values)
        with ranks.readable_losses(group, lambda: resuming.how_to_go_on(job.run, group)):
            if group.leads:
                return job, _run(job, group, _StopSignal())
            stop = _StopSignal(quiet=True)
            with stop.installed():
                for event in _trainer(job, group, stop).run():
                    stop.begin(event)
    return None


@contextlib.contextmanager
def _removed_unless_begun(job: Job, stop: _StopSignal) -> Iterator[None]:
    """Leave nothing of a run that was made here and failed or was stopped before its first step."""
    try:
        yield
    except (KeyboardInterrupt, UserError):
        if job.made_here and not stop.begun:
            shutil.rmtree(job.run.path, ignore_errors=True)
        raise


def _run(job: Job, group: Group, stop: _StopSignal) -> events.RunEnded:
    """The first or only process of a run: it holds the lock and writes."""
    from nanogpt_cli.cli.train.lines import TrainConsole
    from nanogpt_cli.training.drive import drive

    told = drive(
        job.run, job.recipe, lambda: _trainer(job, group, stop), resume=job.resume,
        report=console.say,
    )  # fmt: skip
    try:
        with stop.installed(), TrainConsole() as show, contextlib.closing(told):
            for event in told:
                stop.begin(event)
                # A closed terminal or pipe ends the commentary, not the run.
                with contextlib.suppress(OSError):
                    show(event)
    except KeyboardInterrupt:
        _say_what_is_kept(job.run, stop)
        raise
    assert isinstance(event, events.RunEnded)
    return event


def _say_what_is_kept(folder: RunFolder, stop: _StopSignal) -> None:
    """After a run was stopped at once."""
    from nanogpt_cli.training.checkpoints import retention

    steps = retention.list_steps(folder)
    if steps:
        console.say(f"stopped at once; what came after step {steps[-1]} is not saved")
        console.next_command(shell.command("train", folder.path, "--resume"))
    else:
        when = "at once" if stop.begun else "before the first step"
        console.say(f"stopped {when}; nothing is saved yet")


def _trainer(job: Job, group: Group, stop: _StopSignal) -> Trainer:
    from nanogpt_cli.text.tokens import open_data
    from nanogpt_cli.training.checkpoints import retention
    from nanogpt_cli.training.drive import newest_checkpoint
    from nanogpt_cli.training.trainer import Trainer

    tokens = open_data(job.data)
    checkpoint = None
    if job.resume:
        found = newest_checkpoint(job.run, console.say, job.before) if group.leads else None
        checkpoint = Path(group.share(str(found)))
    trainer = Trainer(
        job.recipe, tokens, job.run, checkpoint=checkpoint, start=job.loaded(), group=group,
        should_stop=stop, skip=job.skip,
    )  # fmt: skip
    if job.before and group.leads:  # now that nothing can refuse it any more
        for undone in retention.undo_after(job.run, trainer.progress.step):
            console.say(f"{undone.name} is kept as {undone}")
    return trainer


class _StopSignal:
    """True once asked to stop; a second SIGINT interrupts at once.

    Before the first step has ended nothing would be saved, so there the first signal interrupts.
    SIGHUP (the terminal is gone: a window closed, a connection lost) asks as well, unless ``nohup``
    had it ignored.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.asked = self.begun = False
        self.quiet = quiet

    def begin(self, event: events.Event) -> None:
        """Notice the first step among the events of the run."""
        self.begun = self.begun or isinstance(event, events.Step)

    def __call__(self) -> bool:
        return self.asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == _SIGHUP:
            _leave_terminal()
        if not self.begun or (self.asked and number == signal.SIGINT):
            raise KeyboardInterrupt
        if not self.asked and not self.quiet:
            console.say("stopping: finishing this step and saving (Ctrl-C again to stop at once)")
        self.asked = True

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if _SIGHUP is not None and signal.getsignal(_SIGHUP) != signal.SIG_IGN:
            numbers.append(_SIGHUP)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _leave_terminal() -> None:
    """Write to nowhere instead of to a terminal that is gone, which would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        if stat.S_ISCHR(os.fstat(number).st_mode):
            os.dup2(nowhere, number)
