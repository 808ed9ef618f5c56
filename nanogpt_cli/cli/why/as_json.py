"""What ``nanogpt why`` found, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanogpt_cli import shell
from nanogpt_cli.cli.why.page import verdict

if TYPE_CHECKING:
    from nanogpt_cli.training.causes.diagnosis import Diagnosis


def to_json(found: Diagnosis) -> dict[str, Any]:
    """The diagnosis as plain values."""
    event, story, tried, batch = found.event, found.story, found.found, found.batch
    made = vars(found.agreement) if found.agreement else {}
    return {
        "run": str(found.run.path),
        "step": event.step if event else None,
        "kind": event.kind if event else None,
        "message": event.message if event else "",
        "onset": story.onset if story else None,
        "chain": [vars(link) for link in story.links] if story else [],
        "replay": {"start": found.start if made else None, **made, "problem": found.problem},
        "window": None if tried is None else {
            "first": tried.window.first, "last": tried.window.last, "excess": tried.excess,
            "healthy": "steps before" if tried.window.healthy else "best trial",
        },
        "trials": [_trial(o) for o in tried.outcomes] if tried else [],
        "untried": [trial.words for trial in tried.untried] if tried else [],
        "refused": [[trial.words, reason] for trial, reason in tried.refused] if tried else [],
        "documents": [vars(text) for text in batch.sequences] if batch else [],
        "batch": batch and {
            "step": batch.step, "loss": batch.loss, "others": batch.others, "excess": batch.excess,
        },
        "fix": found.fix and {
            "command": shell.command(*found.fix.words), "changes": found.fix.changes,
        },
        "verdict": verdict(found),
        "seconds": round(found.seconds, 2),
    }  # fmt: skip


def _trial(outcome: Any) -> dict[str, Any]:
    trial = outcome.trial
    return {
        "kind": trial.kind, "change": trial.words, "sets": list(trial.change.sets),
        "skip": sorted(trial.change.skip), "loss": outcome.loss, "effect": outcome.effect,
        "steps": outcome.steps, "complete": outcome.complete, "cures": outcome.cures,
    }  # fmt: skip
