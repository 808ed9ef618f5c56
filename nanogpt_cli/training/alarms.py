"""From statistics to a named layer, a likely cause and an advice. Pure: no clock, no files.

Those about the machine are in ``system_alarms.py``.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from nanogpt_cli.run.events import Alarm, Eval, Event, Incident, Layers, RunStarted, Step
from nanogpt_cli.training.hysteresis import Finding, Hysteresis

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
# The newest speeds, as a share of the usual.
SLOW, SPEED_WINDOW = 0.7, 10
# log10 of update over weight. Early steps are large by design: warmup ends and Adam's second moment
# settles.
UPDATE_FROM, UPDATE_LOW, UPDATE_HIGH = 100, -5.0, -1.0
MAX_DEAD = 0.5
MAX_LOGIT = 50.0
MIN_ENTROPY = 0.02
MAX_STREAM = 300.0
MIN_GRADIENT = 1e-3
# Evaluations in a row, each with a higher validation loss than the one before.
OVERFIT_RISES = 3
# Medians over the last steps are taken anew after this many of them.
_REFRESH = 10


@dataclass
class Alarms:
    """Feed it every event of a run; it answers with alarms.

    Args:
        vocab_size: for the loss of a model that knows nothing, ln V; 0 where there is none.
    """

    vocab_size: int
    expected: Mapping[str, Sequence[float]] = field(default_factory=dict)
    _raised: Hysteresis = field(default_factory=Hysteresis)
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=LOSS_WINDOW))
    _clipped: deque[bool] = field(default_factory=lambda: deque(maxlen=CLIPPED_WINDOW))
    _speeds: deque[float] = field(default_factory=lambda: deque(maxlen=LOSS_WINDOW))
    _evals: list[Eval] = field(default_factory=list)
    _train_at_eval: list[float] = field(default_factory=list)
    _middle: float = math.inf
    _spread: float = 0.0
    _slow: float = 1.0
    _seen: int = 0
    _overflows: bool = False
    _level: float = math.inf
    _level_spread: float = 0.0

    @property
    def diverged(self) -> bool:
        """Whether the loss has left the level it had reached, and has not come back."""
        return self._is_active("divergence")

    @property
    def usual(self) -> float:
        """The median of the recent losses; infinite while there are too few."""
        return self._middle

    def incident(self, loss: float) -> str:
        """The kind of incident that a step with this loss begins; empty if it begins none."""
        if self._will_diverge(loss) and not self.diverged:
            return "divergence"
        if self.is_spike(loss) and not self._is_active("loss_spike"):
            return "loss_spike"
        return ""

    def update(self, event: Event) -> list[Alarm]:
        """The alarms that ``event`` raises or clears."""
        if isinstance(event, RunStarted):
            self.expected = event.expected
            self._overflows = event.precision == "fp16"
        elif isinstance(event, Step):
            return self._raised.settle(event.step, _STEP_KINDS, list(self._on_step(event)))
        elif isinstance(event, Layers):
            if event.stats:  # an event of histograms alone says nothing about the conditions
                return self._raised.settle(event.step, _LAYER_KINDS, list(self._on_layers(event)))
        elif isinstance(event, Incident) and event.kind == "non_finite":
            return self._raised.settle(event.step, ("non_finite",), [_not_finite(event.message)])
        elif isinstance(event, Eval):
            return self._raised.settle(
                event.step, _EVAL_KINDS, list(self._on_eval(event)), patience=1
            )
        return []

    def _on_step(self, event: Step) -> Iterator[Finding]:
        norm = 0.0 if event.grad_norm is None else event.grad_norm  # not known is no fault
        if not math.isfinite(event.loss) or not math.isfinite(norm):
            what = "loss" if not math.isfinite(event.loss) else "gradient norm"
            if what == "loss" or not self._overflows:  # the loss scaler tries out overflows
                yield _not_finite(f"{what} is not finite at step {event.step}", event.loss)
            return
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
        """Whether a loss is far above the recent ones, by the median absolute deviation."""
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

    def _is_active(self, kind: str) -> bool:
        return self._raised.is_active(kind)

    def _refresh(self) -> None:
        """Medians of the last losses and speeds."""
        if len(self._losses) >= 50:
            self._middle = median(self._losses)
            deviation = median(abs(x - self._middle) for x in self._losses)
            self._spread = max(1.4826 * deviation, 1e-3)  # sigma of a normal distribution
        if len(self._speeds) == self._speeds.maxlen:
            speeds = list(self._speeds)
            self._slow = median(speeds[-SPEED_WINDOW:]) / max(median(speeds), 1e-9)

    def _stuck(self, event: Step) -> Iterator[Finding]:
        if self.vocab_size < 2:
            return
        floor = math.log(self.vocab_size)
        if event.step < STUCK_FROM or event.loss <= floor - STUCK_MARGIN:
            return
        recent = list(self._losses)[-STUCK_WINDOW:]
        if len(recent) == STUCK_WINDOW and min(recent) > floor - STUCK_MARGIN:
            yield Finding(
                "stuck", "warning", f"loss is still {median(recent):.2f}, ln(vocabulary) "
                f"is {floor:.2f}: nothing has been learned",
                "check the data and the initialisation (nanogpt init-inspect), raise the "
                "learning rate", value=median(recent),
            )  # fmt: skip

    def _on_layers(self, event: Layers) -> Iterator[Finding]:
        stats = event.stats
        for layer, ratio in enumerate(stats.get("update_ratio", ())):
            usual = event.step < UPDATE_FROM or UPDATE_LOW <= ratio <= UPDATE_HIGH
            if not usual and math.isfinite(ratio):
                fast = ratio > UPDATE_HIGH
                yield Finding(
                    "update_ratio", "warning",
                    f"layer {layer} changes by 10^{ratio:.1f} of its weights a step",
                    "lower the learning rate" if fast else "raise the learning rate; the layer "
                    "hardly learns", layer, ratio,
                )  # fmt: skip
        for layer, share in enumerate(stats.get("dead", ())):
            if share > MAX_DEAD:
                yield Finding(
                    "dead_units", "warning", f"{share:.0%} of layer {layer}'s MLP units are dead",
                    "lower the learning rate or the weight decay; smooth activations recover "
                    "better", layer, share,
                )  # fmt: skip
        for layer, logit in enumerate(stats.get("attn_logit_max", ())):
            if logit > MAX_LOGIT:
                yield Finding(
                    "attention_logits", "warning",
                    f"layer {layer}'s largest attention logit is {logit:.0f}",
                    "attention is about to saturate: lower the learning rate", layer, logit,
                )  # fmt: skip
        for layer, entropy in enumerate(stats.get("attn_entropy", ())):
            if entropy < MIN_ENTROPY:
                yield Finding(
                    "entropy_collapse", "warning",
                    f"layer {layer} attends to single positions (entropy {entropy:.3f} of ln t)",
                    "often precedes divergence: lower the learning rate", layer, entropy,
                )  # fmt: skip
        yield from self._growth(stats.get("resid_rms", ()))
        yield from self._vanishing(stats.get("grad_norm", ()))

    def _growth(self, rms: Sequence[float]) -> Iterator[Finding]:
        """The stream grew far beyond what its initialisation predicts."""
        expected = self.expected.get("resid_rms", ())
        if not rms or len(expected) != len(rms):
            return
        factor = rms[-1] / max(expected[-1], 1e-12)
        if factor > MAX_STREAM:
            yield Finding(
                "activation_growth", "warning",
                f"the residual stream leaves the last layer {factor:.0f} times larger than at "
                "the start", "raise the weight decay or lower the learning rate",
                len(rms) - 1, factor,
            )  # fmt: skip

    def _vanishing(self, grads: Sequence[float]) -> Iterator[Finding]:
        finite = [g for g in grads if math.isfinite(g)]
        if len(finite) < 2 or min(finite) >= MIN_GRADIENT * max(finite):
            return
        weakest = min(range(len(grads)), key=lambda i: grads[i])
        yield Finding(
            "vanishing_gradient", "warning",
            f"layer {weakest}'s gradient is {min(finite) / max(max(finite), 1e-30):.0e} of the "
            "largest", "check the initialisation: nanogpt init-inspect", weakest, grads[weakest],
        )  # fmt: skip

    def _on_eval(self, event: Eval) -> Iterator[Finding]:
        # A resumed run repeats the evaluation that its checkpoint came before, and one that went
        # back makes later ones anew.
        while self._evals and self._evals[-1].step >= event.step:
            self._evals.pop()
            self._train_at_eval.pop()
        self._evals.append(event)
        self._train_at_eval.append(median(self._losses) if self._losses else math.nan)
        if len(self._evals) <= OVERFIT_RISES:
            return
        val = [e.val_loss for e in self._evals[-OVERFIT_RISES - 1 :]]
        train = self._train_at_eval[-OVERFIT_RISES - 1 :]
        if val == sorted(val) and val[0] < val[-1] and train == sorted(train, reverse=True):
            best = min(self._evals, key=lambda e: e.val_loss)
            yield Finding(
                "overfitting", "warning",
                f"validation loss rose three times in a row while training loss fell; best was "
                f"{best.val_loss:.3f} at step {best.step}",
                "stop here (train.patience), use more data, dropout or weight decay",
                value=event.val_loss,
            )  # fmt: skip


_STEP_KINDS = ("non_finite", "loss_spike", "divergence", "always_clipped", "stuck", "slow")
_LAYER_KINDS = (
    "update_ratio", "dead_units", "attention_logits", "entropy_collapse", "activation_growth",
    "vanishing_gradient",
)  # fmt: skip
_EVAL_KINDS = ("overfitting",)


def _not_finite(message: str, value: float | None = None) -> Finding:
    return Finding(
        "non_finite", "error", message,
        "lower the learning rate or warm up longer; nanogpt replay shows the first tensor that "
        "broke", value=value,
    )  # fmt: skip
