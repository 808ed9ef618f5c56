"""Starting trainers as other processes: one behind the dashboard, or several through PyTorch."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

from nanogpt_cli import foreign_files, shell
from nanogpt_cli.cli import advice, console
from nanogpt_cli.cli.watch import printed
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import EventReader


def run_with_dashboard(folder: RunFolder, arguments: list[str]) -> None:
    """Train in a child process of its own session and show its run folder.

    Without a terminal the child is followed by plain lines instead.
    """
    from nanogpt_cli.tui import terminal

    command = [sys.executable, "-m", "nanogpt_cli", "train", *arguments]
    if reason := terminal.why_not():
        console.say(f"no dashboard: {reason}; plain progress instead")
        sys.exit(subprocess.run(command).returncode)
    if foreign_files.present(folder.stdout):
        foreign_files.check(folder.stdout)  # to write to a named pipe means to wait for its reader
    with folder.stdout.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    from nanogpt_cli.tui.app import run_dashboard
    from nanogpt_cli.tui.state.session import RunSession

    session = RunSession(folder.path, child=process)
    left = run_dashboard([session])
    if process.poll() is None:
        session.finish()
        pid = f" (pid {process.pid})"
        console.say(printed.parting(session, asked_to_stop=left.stop) + pid)
        console.next_command(advice.after(folder))
    else:
        if process.returncode:
            console.say(f"the trainer ended with {_cause(process.returncode)}; see {folder.stdout}")
        console.next_command(advice.after(folder, last_ending(folder).reason))


def last_ending(run: RunFolder) -> events.RunEnded:
    """How a run ended; an error where its log does not say."""
    found = [e for e in EventReader(run.events).read_all() if isinstance(e, events.RunEnded)]
    return found[-1] if found else events.RunEnded(step=0, reason="error")


def run_processes(number: int, restarts: int, arguments: list[str], run: RunFolder) -> None:
    """Train with that many processes on this machine, by PyTorch's elastic launcher.

    Args:
        number: processes.
        restarts: times all of them are started again after one has died; they go on from the
            last checkpoint.
        arguments: of ``nanogpt train``, for every process.
        run: the run they share.

    Raises:
        UserError: a process died and no restart was left.
    """
    from torch.distributed import run as launcher
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Each line of its own log repeats what is said here, with a traceback.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    # Else restarted processes find the addresses of the dead ones in a store that outlives them.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    options = ["--standalone", f"--nproc-per-node={number}", f"--max-restarts={restarts}"]
    try:
        launcher.main([*options, "-m", "nanogpt_cli", "train", *arguments])
    except ChildFailedError as error:
        # Ranks that have lost another end by themselves, perhaps before the launcher looks.
        killed = [(r, f) for r, f in error.failures.items() if f.exitcode < 0]
        rank, failure = killed[0] if killed else error.get_first_failure()
        again = shell.hint("train", run.path, "--resume", "--procs", number)
        saved = any(run.checkpoints.glob("step-*"))
        raise UserError(
            f"rank {rank} ended with {_cause(failure.exitcode)}, so the job was ended",
            f"resume from the last checkpoint: {again}" if saved else "its messages are above",
        ) from None
    except SignalException:
        return  # the ranks were told, and saved before they ended


# What usually sends these signals to a trainer.
_SENDERS = {
    "SIGABRT": "PyTorch gave up, as it does when another process has not answered for minutes; "
    "what it said is above",
    "SIGBUS": "often too little shared memory, /dev/shm",
    "SIGKILL": "often the system's, for lack of memory",
}


def _cause(code: int) -> str:
    """An exit code in words."""
    import signal

    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # real-time signals have no names
        return f"signal {-code}"
    return f"signal {name} ({_SENDERS[name]})" if name in _SENDERS else f"signal {name}"
