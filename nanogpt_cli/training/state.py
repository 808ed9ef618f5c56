"""Where a run is: what its checkpoints remember, and what only the running process knows."""

from __future__ import annotations

from dataclasses import dataclass, field

from nanogpt_cli.training.progress import Progress


@dataclass
class RunState:
    """The one place for what changes while a run trains, besides tensors.

    Attributes:
        progress: saved in every checkpoint.
        saved_step: step of the newest checkpoint, negative if there is none.
        step_seconds: smoothed duration of a step without statistics.
        ending: why the run ends, as in ``events.RunEnded``; empty while it goes on.
        message: more on the ending.
        paused: whether the user has asked for a pause.
        skipped: steps in a row without an update.
        rollbacks: steps after which the run has returned to a checkpoint.
    """

    progress: Progress = field(default_factory=Progress)
    saved_step: int = -1
    step_seconds: float = 0.0
    ending: str = ""
    message: str = ""
    paused: bool = False
    skipped: int = 0
    rollbacks: list[int] = field(default_factory=list)

    def count_step(self, tokens: int, seconds: float) -> None:
        """One step more, of so many tokens and seconds."""
        self.progress.step += 1
        self.progress.tokens += tokens
        smooth = 0.9 if self.step_seconds else 0.0
        self.step_seconds = smooth * self.step_seconds + (1 - smooth) * seconds
