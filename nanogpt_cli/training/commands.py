"""Commands to a running trainer: finding their files in the run folder, and carrying them out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from nanogpt_cli.run import events
from nanogpt_cli.run.commands import take_commands
from nanogpt_cli.training.hooks import Checkpoints, Evaluations, Hook, Samples
from nanogpt_cli.training.spec import RunSpec
from nanogpt_cli.training.state import RunState
from nanogpt_cli.training.stepper import Stepper

_POLL_S = 0.5


class Commands(Hook):
    """Takes the commands of the first rank's run folder, and carries them out on every rank.

    Args:
        spec, stepper, state: of the run.
        checkpoints, evaluations, samples: the hooks that "checkpoint", "eval" and "sample" call.
    """

    def __init__(
        self,
        spec: RunSpec,
        stepper: Stepper,
        state: RunState,
        checkpoints: Checkpoints,
        evaluations: Evaluations,
        samples: Samples,
    ) -> None:
        super().__init__(spec, stepper, state)
        self.checkpoints, self.evaluations, self.samples = checkpoints, evaluations, samples
        self._next_look = 0.0
        self._taken: list[tuple[str, str]] = []

    def waiting(self) -> bool:
        """Whether there are commands; looks at the disk twice a second at most."""
        if self.folder is None or not self.group.leads:
            return False
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _POLL_S
            self._taken += take_commands(self.folder)
        return bool(self._taken)

    def carry_out(self) -> Iterator[events.Event]:
        """Carry out what there is, oldest first. Every rank must call it.

        While the run is paused the disk is looked at each time.
        """
        if self.state.paused:
            self._next_look = 0.0
        self.waiting()
        taken, self._taken = self._taken, []
        for name, argument in self.group.share(taken):
            yield from self._obey(name, argument)

    def _obey(self, name: str, argument: str) -> Iterator[events.Event]:
        """Carry out one command and say what came of it."""
        result = "done"
        if name in ("pause", "resume"):
            self.state.paused = name == "pause"
        elif name == "checkpoint":
            yield from self.checkpoints.save()
        elif name == "eval":
            yield from self.evaluations.evaluate()
        elif name == "sample":
            yield from self.samples.sample(argument or None)
        elif name == "stop":
            self.state.ending = "stopped"
        elif name == "lr":
            result = self._scale_lr(argument)
        else:
            result = "unknown command"
        step = self.progress.step
        yield events.Command(step=step, name=name, argument=argument, result=result)

    def _scale_lr(self, argument: str) -> str:
        try:
            factor = float(argument)
        except ValueError:
            return f"not a number: {argument}"
        if not 0 < factor < math.inf:
            return f"not a usable factor: {argument}"
        self.progress.lr_factor *= factor
        return f"learning rate is now {self.progress.lr_factor:g} times the recipe's"
