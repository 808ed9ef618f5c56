"""How far ahead the draft of speculative decoding (``sampling.speculate``) should propose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Tokens in one pass of the model, of which one is known and the draft proposes the others.
LENGTHS = (4, 8, 12, 16, 24)
# What a pass must save to be worth the draft's memory and the measurement's error.
_SAVED = 0.1
# A draft in eight bits is nearly always right; this belief counts as so many proposals.
_BELIEF, _BELIEVED = 10, 0.98


@dataclass(frozen=True)
class Pace:
    """Measured times that tell whether a draft helps, in seconds.

    Attributes:
        step: seconds of a step of the model itself.
        proposal: seconds of a step of the draft.
        check: seconds that a pass of so many tokens takes beside its proposals.
    """

    step: float
    proposal: float
    check: Mapping[int, float]

    def length(self, right: int = 0, asked: int = 0) -> int:
        """The number of tokens in a pass with which a token takes least time; 1 for no pass.

        Args:
            right: proposals that were drawn in the end.
            asked: proposals of which that is known.
        """
        p = (right + _BELIEF * _BELIEVED) / (asked + _BELIEF)
        seconds = {
            n: ((n - 1) * self.proposal + took) / _used(n, p) for n, took in self.check.items()
        }
        seconds[1] = (1 - _SAVED) * self.step
        return min(seconds, key=lambda n: seconds[n])


def _used(n: int, p: float) -> float:
    """How many of a pass's n logits are used on average if a proposal is right with probability p.

    Those after a proposal need it and all before it to be right.
    """
    return sum(p**i for i in range(n))
