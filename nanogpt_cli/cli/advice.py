"""What to type next about a run: the same advice from every command that leaves one."""

from __future__ import annotations

from nanogpt_cli import shell
from nanogpt_cli.run.folder import RunFolder

# Reasons of ``events.RunEnded`` that are no words of their own.
ENDINGS = {"early_stop": "stopped early", "non_finite": "given up"}


def after(run: RunFolder, reason: str = "", processes: int = 1) -> str:
    """The command that makes most sense after a run.

    Args:
        run: the run.
        reason: why it ended, as in ``events.RunEnded``, or the word for its state; empty while it
            goes on.
        processes: that trained it.
    """
    path = shell.path_word(run.path)
    if reason in ("", "waiting", "silent"):
        return shell.command("watch", path)
    if reason in ("non_finite", "diverged"):
        return shell.command("why", path)
    if not any(run.checkpoints.glob("step-*")):
        return shell.command(*(("watch", path) if run.events.is_file() else ("train", "small")))
    if reason in ("stopped", "error", "crashed"):
        more = ["--procs", processes] if processes > 1 else []
        return shell.command("train", path, "--resume", *more)
    if reason in ("finished", "early_stop") and _had_incident(run):
        return shell.command("why", path)
    return shell.command("sample", path)


def _had_incident(run: RunFolder) -> bool:
    """Whether the steps that count hold an incident; those that a resume repeated do not."""
    from nanogpt_cli.run import events, history
    from nanogpt_cli.run.follow import EventReader

    reader, told = EventReader(run.events), []
    while True:
        before = reader.offset
        # Steps, almost all of a long log, come undecoded.
        told += [
            e for e in reader.read_blocks() if isinstance(e, events.RunStarted | events.Incident)
        ]
        if reader.offset == before:
            return any(isinstance(event, events.Incident) for event in history.effective(told))
