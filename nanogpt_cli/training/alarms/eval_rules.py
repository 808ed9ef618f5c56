"""What evaluations tell beside the training loss: rules that remember the evaluations so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from nanogpt_cli.run.events import Eval
from nanogpt_cli.training.alarms.hysteresis import Finding

KINDS = ("overfitting", "split_gap", "low_loss", "small_validation")
# Evaluations in a row, each with a higher validation loss than the one before.
OVERFIT_RISES = 3
# Nats by which the validation loss exceeds that of the newest training steps, at so many
# evaluations in a row, although no text was seen twice.
SPLIT_GAP, SPLIT_EVALS, SPLIT_WINDOW = 0.5, 2, 20
# Standard errors of the validation loss by which it must exceed the other as well.
SPLIT_SIGMAS = 6.0
# Bits per byte that no language needs: the best compressors of English prose need 0.8.
LOW_LOSS = 0.1
# Standard error of the validation loss, in nats, and as a share of that loss: the large losses of a
# run that has diverged scatter as widely, however large the split.
MAX_ERROR, MAX_ERROR_SHARE = 0.05, 0.01


@dataclass
class EvalRules:
    """Judges evaluations.

    Args:
        train_tokens: of the training split; 0 where it is not known.
    """

    train_tokens: int = 0
    _evals: list[Eval] = field(default_factory=list)
    _train: list[float] = field(default_factory=list)
    _gaps: int = 0

    def judge(self, event: Eval, losses: Sequence[float], tokens: int) -> Iterator[Finding]:
        """What holds at one evaluation.

        Args:
            event: the evaluation.
            losses: of the last training steps, newest last.
            tokens: that the run has trained on.
        """
        # A resumed run repeats the evaluation that its checkpoint came before, and one that went
        # back makes later ones anew.
        while self._evals and self._evals[-1].step >= event.step:
            self._evals.pop()
            self._train.pop()
        self._evals.append(event)
        self._train.append(median(losses) if losses else float("nan"))
        yield from self._overfitting(event)
        yield from self._gap(event, list(losses)[-SPLIT_WINDOW:], tokens)
        if event.bits_per_byte is not None and event.bits_per_byte < LOW_LOSS:
            yield Finding(
                "low_loss", "warning",
                f"the validation loss is {event.bits_per_byte:.3f} bits per byte, less than any "
                "language needs", "check that the targets are the next tokens and that no "
                "validation text is in the training split", value=event.bits_per_byte,
            )  # fmt: skip
        large = max(MAX_ERROR, MAX_ERROR_SHARE * event.val_loss)
        if event.std_error is not None and event.std_error > large:
            yield Finding(
                "small_validation", "warning",
                f"the validation split is small: its loss of {event.val_loss:.2f} has a standard "
                f"error of {event.std_error:.2f}", "take a larger validation split "
                "(nanogpt prepare --val-fraction); smaller differences mean nothing",
                value=event.std_error,
            )  # fmt: skip

    def _overfitting(self, event: Eval) -> Iterator[Finding]:
        if len(self._evals) <= OVERFIT_RISES:
            return
        val = [e.val_loss for e in self._evals[-OVERFIT_RISES - 1 :]]
        train = self._train[-OVERFIT_RISES - 1 :]
        if val == sorted(val) and val[0] < val[-1] and train == sorted(train, reverse=True):
            best = min(self._evals, key=lambda e: e.val_loss)
            yield Finding(
                "overfitting", "warning",
                f"validation loss rose three times in a row while training loss fell; best was "
                f"{best.val_loss:.3f} at step {best.step}",
                "stop here (train.patience), use more data, dropout or weight decay",
                value=event.val_loss,
            )  # fmt: skip

    def _gap(self, event: Eval, recent: Sequence[float], tokens: int) -> Iterator[Finding]:
        """Memorising takes a second look at the text; a gap before that has another cause."""
        first_pass = 0 < tokens <= self.train_tokens and recent
        gap = event.val_loss - median(recent) if first_pass else 0.0
        sure = max(SPLIT_GAP, SPLIT_SIGMAS * (event.std_error or 0.0))
        self._gaps = self._gaps + 1 if gap > sure else 0
        if self._gaps >= SPLIT_EVALS:
            yield Finding(
                "split_gap", "warning",
                f"validation loss {event.val_loss:.2f} is {gap:.2f} above the training loss, "
                "although no text was seen twice",
                "check that both splits are the same kind of text, that targets are the next "
                "tokens in both, and that an average of the weights follows them", value=gap,
            )  # fmt: skip
