"""From statistics to a named layer, a likely cause and an advice. Pure: no clock, no files.

Rules about layers, evaluations and the machine have modules of their own: ``layer_rules.py``,
``eval_rules.py``, ``system_alarms.py``; ``hysteresis.py`` makes alarms of what they find.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from nanogpt_cli.run.events import Alarm, Eval, Event, Incident, Layers, RunStarted, Step
from nanogpt_cli.training.alarms import eval_rules, layer_rules
from nanogpt_cli.training.alarms.hysteresis import Finding, Hysteresis

LOSS_WINDOW = CLIPPED_WINDOW = 200
MAX_CLIPPED = 0.9
# A run has diverged when so many losses in a row are all this far (in nats, and in robust standard
# deviations of the loss) above the level it had reached.
DIVERGED_STEPS = 5
DIVERGED_RISE = 1.0
DIVERGED_SIGMAS = 8.0
# A loss is a spike when it is this far above the median of the recent ones.
SPIKE_RISE, SPIKE_SIGMAS = 0.5, 8.0
# No loss of a window after the first steps is this far below ln V: nothing has been learned.
STUCK_FROM, STUCK_WINDOW, STUCK_MARGIN = 200, 50, 0.1
# A first loss so far above ln V, in nats, is that of a model that begins badly.
BAD_START = 1.0
# The newest speeds, as a share of the usual.
SLOW, SPEED_WINDOW = 0.7, 10
# Medians over the last steps are taken anew after this many of them.
_REFRESH = 10


STEP_KINDS = (
    "non_finite", "bad_start", "loss_spike", "divergence", "always_clipped", "stuck", "slow",
)  # fmt: skip


@dataclass
class Alarms:
    """Feed it every event of a run; it answers with alarms.

    Args:
        vocab_size: for the loss of a model that knows nothing, ln V; 0 where there is none.
        train_tokens: of the training split; 0 where it is not known.
    """

    vocab_size: int
    train_tokens: int = 0
    expected: Mapping[str, Sequence[float]] = field(default_factory=dict)
    _raised: Hysteresis = field(default_factory=Hysteresis)
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=LOSS_WINDOW))
    _clipped: deque[bool] = field(default_factory=lambda: deque(maxlen=CLIPPED_WINDOW))
    _speeds: deque[float] = field(default_factory=lambda: deque(maxlen=LOSS_WINDOW))
    _middle: float = math.inf
    _spread: float = 0.0
    _slow: float = 1.0
    _seen: int = 0
    _overflows: bool = False
    _level: float = math.inf
    _level_spread: float = 0.0
    _lr: float = 0.0
    _tokens: int = 0
    _began_badly: bool = False

    def __post_init__(self) -> None:
        self._eval_rules = eval_rules.EvalRules(self.train_tokens)

    @property
    def diverged(self) -> bool:
        """Whether the loss has left the level it had reached, and has not come back."""
        return self._raised.is_active("divergence")

    @property
    def usual(self) -> float:
        """The median of the recent losses; infinite while there are too few."""
        return self._middle

    def incident(self, loss: float) -> str:
        """The kind of incident that a step with this loss begins; empty if it begins none."""
        if self._will_diverge(loss) and not self.diverged:
            return "divergence"
        if self.is_spike(loss) and not self._raised.is_active("loss_spike"):
            return "loss_spike"
        return ""

    def update(self, event: Event) -> list[Alarm]:
        """The alarms that ``event`` raises or clears."""
        if isinstance(event, RunStarted):
            self.expected = event.expected
            self._overflows = event.precision == "fp16"
        elif isinstance(event, Step):
            return self._raised.settle(event.step, STEP_KINDS, list(self._on_step(event)))
        elif isinstance(event, Layers):
            if event.stats:  # an event of histograms alone says nothing about the conditions
                found = layer_rules.judge(event, self.expected, learns=self._lr > 0)
                return self._raised.settle(event.step, layer_rules.KINDS, list(found))
        elif isinstance(event, Incident) and event.kind == "non_finite":
            return self._raised.settle(event.step, ("non_finite",), [_not_finite(event.message)])
        elif isinstance(event, Eval):
            found = self._eval_rules.judge(event, self._losses, self._tokens)
            return self._raised.settle(event.step, eval_rules.KINDS, list(found), patience=1)
        return []

    def _on_step(self, event: Step) -> Iterator[Finding]:
        norm = 0.0 if event.grad_norm is None else event.grad_norm  # not known is no fault
        if not math.isfinite(event.loss) or not math.isfinite(norm):
            what = "loss" if not math.isfinite(event.loss) else "gradient norm"
            if what == "loss" or not self._overflows:  # the loss scaler tries out overflows
                yield _not_finite(f"{what} is not finite at step {event.step}", event.loss)
            return
        self._lr, self._tokens = event.lr or 0.0, event.tokens
        yield from self._bad_start(event)
        if self.is_spike(event.loss):
            yield Finding(
                "loss_spike", "error",
                f"loss {event.loss:.3g} is far above the recent {self._middle:.3g}",
                "if it does not come back: lower the learning rate, or clip gradients harder",
                value=(event.loss - self._middle) / self._spread,
            )  # fmt: skip
        if self._will_diverge(event.loss):
            yield Finding(
                "divergence", "error",
                f"the run has diverged: loss {event.loss:.3g}, and {DIVERGED_STEPS} steps in a "
                f"row far above the {self._level:.3g} it had reached",
                "lower the learning rate or warm up longer, and begin again or from an earlier "
                "checkpoint", value=event.loss,
            )  # fmt: skip
        self._losses.append(event.loss)
        self._clipped.append(event.clipped)
        if event.tokens_per_s is not None:
            self._speeds.append(event.tokens_per_s)
        if self._seen % _REFRESH == 0:
            self._refresh()
        self._seen += 1
        self._note_level()
        share = sum(self._clipped) / len(self._clipped)
        if len(self._clipped) == CLIPPED_WINDOW and share > MAX_CLIPPED:
            yield Finding(
                "always_clipped", "warning",
                f"{share:.0%} of the last {CLIPPED_WINDOW} gradients were clipped",
                "grad_clip now sets the step size: raise it, or lower the learning rate",
                value=share,
            )  # fmt: skip
        yield from self._stuck(event)
        if self._slow < SLOW:
            yield Finding(
                "slow", "info", f"throughput fell to {self._slow:.0%} of the usual",
                "something else uses the machine", value=self._slow,
            )  # fmt: skip

    def is_spike(self, loss: float) -> bool:
        """Whether a loss is far above the recent ones, in standard deviations of single losses."""
        return loss > self._middle + max(SPIKE_RISE, SPIKE_SIGMAS * self._spread)

    def _will_diverge(self, loss: float) -> bool:
        """Whether this loss and those before it are all far above the level reached."""
        limit = self._level + max(DIVERGED_RISE, DIVERGED_SIGMAS * self._level_spread)
        last = [*itertools.islice(reversed(self._losses), DIVERGED_STEPS - 1), loss]
        return len(last) == DIVERGED_STEPS and min(last) > limit

    def _note_level(self) -> None:
        """The lowest level of the loss so far: a median of losses that are not the newest ones."""
        if self._spread:
            level, spread = self._middle, self._spread
        else:
            level, spread = median(list(self._losses)[: 1 - DIVERGED_STEPS] or self._losses), 0.0
        if level < self._level:
            self._level, self._level_spread = level, spread

    def _refresh(self) -> None:
        """Medians of the last losses and speeds."""
        if len(self._losses) >= 50:
            self._middle = median(self._losses)
            # From one loss to the next, so that a loss which is still falling does not widen it;
            # the median of |x - y| is 0.954 sigma for normal values.
            change = median(abs(y - x) for x, y in itertools.pairwise(self._losses))
            self._spread = max(change / 0.954, 1e-3)
        if len(self._speeds) == self._speeds.maxlen:
            speeds = list(self._speeds)
            self._slow = median(speeds[-SPEED_WINDOW:]) / max(median(speeds), 1e-9)

    def _bad_start(self, event: Step) -> Iterator[Finding]:
        """A first loss far above that of a model that knows nothing; holds until it is gone."""
        if self.vocab_size < 2:
            return
        floor = math.log(self.vocab_size)
        above = event.loss > floor + BAD_START
        self._began_badly = above and (self._began_badly or event.step == 1)
        if self._began_badly:
            yield Finding(
                "bad_start", "warning",
                f"the first loss is {event.loss:.3g}; a model that knows nothing has "
                f"ln(vocabulary) = {floor:.3g}",
                "check the initialisation (nanogpt init-inspect): the logits begin too large",
                value=event.loss, at_once=True,
            )  # fmt: skip

    def _stuck(self, event: Step) -> Iterator[Finding]:
        if self.vocab_size < 2:
            return
        floor = math.log(self.vocab_size)
        if event.step < STUCK_FROM or event.loss <= floor - STUCK_MARGIN:
            return
        recent = list(self._losses)[-STUCK_WINDOW:]
        # Far above ln V a loss may still fall, as one that is a sum over tokens does.
        earlier, now = median(list(self._losses)[:STUCK_WINDOW]), median(recent)
        falls = now > floor + BAD_START and now < earlier - STUCK_MARGIN
        if len(recent) == STUCK_WINDOW and min(recent) > floor - STUCK_MARGIN and not falls:
            yield Finding(
                "stuck", "warning", f"loss is still {median(recent):.2f}, ln(vocabulary) "
                f"is {floor:.2f}: nothing has been learned",
                "check the data and the initialisation (nanogpt init-inspect), raise the "
                "learning rate", value=median(recent),
            )  # fmt: skip


def _not_finite(message: str, value: float | None = None) -> Finding:
    return Finding(
        "non_finite", "error", message,
        "lower the learning rate or warm up longer; nanogpt replay shows the first tensor that "
        "broke", value=value,
    )  # fmt: skip
