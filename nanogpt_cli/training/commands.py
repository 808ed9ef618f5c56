"""What people ask of a running trainer: command files in the run folder."""

from __future__ import annotations

import math
import time

from nanogpt_cli.run.commands import take_commands
from nanogpt_cli.run.folder import RunFolder

_POLL_S = 0.5


class Inbox:
    """Looks for command files, but not at every step.

    Args:
        run: where they are dropped; ``None`` for a run without a folder or a rank that has no say.
    """

    def __init__(self, run: RunFolder | None) -> None:
        self.run = run
        self._next = 0.0
        self._taken: list[tuple[str, str]] = []

    def waiting(self) -> bool:
        """Whether there are commands; looks at the disk twice a second at most."""
        if self.run is None:
            return False
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _POLL_S
            self._taken += take_commands(self.run)
        return bool(self._taken)

    def take(self, *, look: bool = False) -> list[tuple[str, str]]:
        """The (name, argument) pairs found, oldest first; ``look`` at the disk first."""
        if look:
            self._next = 0.0
        self.waiting()
        taken, self._taken = self._taken, []
        return taken


def factor(argument: str) -> float:
    """The learning-rate factor a person typed.

    Raises:
        ValueError: it is not a positive finite number; the message says so.
    """
    try:
        value = float(argument)
    except ValueError:
        raise ValueError(f"not a number: {argument}") from None
    if not 0 < value < math.inf:
        raise ValueError(f"not a usable factor: {argument}")
    return value
