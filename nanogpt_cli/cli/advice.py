"""What to type next about a run: the same advice from every command that leaves one."""

from __future__ import annotations

from nanogpt_cli.places import RUNS
from nanogpt_cli.run.folder import RunFolder

# Reasons of ``events.RunEnded`` that are no words of their own.
ENDINGS = {"early_stop": "stopped early", "non_finite": "given up"}


def after(run: RunFolder, reason: str = "") -> str:
    """The command that makes most sense after a run.

    Args:
        run: the run.
        reason: why it ended, as in ``events.RunEnded``, or the word for its state; empty while it
            goes on.
    """
    if reason in ("", "waiting", "silent"):
        return f"nanogpt watch {run.path}"
    if reason in ("non_finite", "diverged") and any(run.incidents.glob("step-*")):
        return f"nanogpt replay {run.path}"
    if not any(run.checkpoints.glob("step-*")):
        return f"nanogpt watch {run.path}" if run.events.is_file() else "nanogpt train small"
    if reason in ("stopped", "error", "crashed"):
        home = run.path.parent.resolve() == RUNS.resolve()
        where = "" if home else f" --out {run.path.parent}"
        return f"nanogpt train {run.name} --resume{where}"
    return f"nanogpt sample --run {run.path}"
