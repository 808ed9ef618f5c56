"""Which changes are worth a try, most likely causes first by what the log says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nanogpt_cli import schemes
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.training.causes.chain import Story
from nanogpt_cli.training.causes.record import Event, Record
from nanogpt_cli.training.causes.rerun import Change

# Kinds of events that are a jump of the loss; the others are conditions that last.
JUMPS = ("non_finite", "loss_spike", "divergence", "asked")
# A learning rate, warmup or scheme is what a run begins with: after so many steps it is no news.
_EARLY = 100
# A batch whose loss is so many standard deviations above that of others is of another kind.
_OTHER_DATA = 5.0


@dataclass(frozen=True)
class Trial:
    """One change.

    Attributes:
        kind: of the cause that it would show.
        words: the change, for a table.
        cause: the finding as a sentence, if it cures.
        change: for the replay.
        scratch: it makes another model or other initial values, so it begins at step 0.
        specific: how little else it touches, from 0 (one step's data) up. Among changes that cure
            equally well the most specific one names the cause, for a lower learning rate cures
            almost everything.
        likely: for the order in which they are tried; larger comes first.
    """

    kind: str
    words: str
    cause: str
    change: Change
    scratch: bool = False
    specific: int = 5
    likely: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """What is known before any trial.

    Attributes:
        recipe: in force at the event.
        scratch: whether the run's own initial values can be drawn again.
        start: the step after which the trials begin.
        batch_excess: loss of the step's batch over that of other batches with the same weights,
            in their standard deviations; 0 where it is not known.
        step_s: seconds that a step takes.
    """

    record: Record
    event: Event
    story: Story
    recipe: Recipe
    scratch: bool
    start: int
    batch_excess: float = 0.0
    step_s: float = 0.0

    @property
    def early(self) -> bool:
        """Whether the event belongs to the beginning of the run."""
        return self.story.onset <= self.recipe.optim.warmup_steps + _EARLY

    def first_is(self, *names: str) -> bool:
        """Whether one of the first links of the chain is one of these statistics."""
        return any(link.name in names for link in self.story.links[:4])


def candidates(known: Evidence) -> list[Trial]:
    """Every change that applies, the most likely one first."""
    found: list[Trial] = []
    for make in (_data, _reverted, _user_factor, _precision, _scheme, _decay, _momenta, _warmup,
                 _clipping, _qk_norm, _rates):  # fmt: skip
        found += make(known)
    if not known.scratch:
        found = [trial for trial in found if not trial.scratch]
    return sorted(found, key=lambda trial: -trial.likely)


def _set(*pairs: tuple[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={_literal(value)}" for key, value in pairs)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _data(known: Evidence) -> Iterator[Trial]:
    """The step whose loss jumps, or the one before, whose update may have done it."""
    if known.event.kind not in JUMPS:
        return
    own = known.batch_excess > _OTHER_DATA
    for step, likely in ((known.story.onset, 10.0 if own else 3.0), (known.story.onset - 1, 2.8)):
        if step > known.start and not (own and step < known.story.onset):
            yield Trial(
                "data", f"step {step} left out", f"the data of step {step}",
                Change(skip=frozenset({step})), specific=0, likely=likely,
            )  # fmt: skip


def _reverted(known: Evidence) -> Iterator[Trial]:
    """What a resume has changed, put back one key at a time."""
    sessions = [s for s in known.record.sessions if s.step < known.event.step]
    for before, after in itertools.pairwise(sessions):
        for key, old, new in differences(before.recipe, after.recipe):
            if after.step < known.start:
                continue
            yield Trial(
                "resume", f"{key} = {old} as before", f"{key} was changed from {old} to {new} when "
                f"the run was resumed after step {after.step}",
                Change(sets=_set((key, old))), specific=1, likely=9.0,
            )  # fmt: skip


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """(key, old, new) of what changes how a run learns."""
    for section in ("optim", "train", "model", "data"):
        old, new = before.get(section), after.get(section)
        if not isinstance(old, dict) or not isinstance(new, dict):
            continue
        for key, value in new.items():
            learns = section != "train" or key in ("precision", "tokens_per_step", "max_steps")
            if learns and key in old and old[key] != value and (section, key) != ("data", "name"):
                yield f"{section}.{key}", old[key], value


def _user_factor(known: Evidence) -> Iterator[Trial]:
    factor = known.record.factor(known.event.step)
    if factor == 1.0:
        return
    yield Trial(
        "command", f"learning rate not x {factor:g}",
        f"the learning rate was multiplied by {factor:g} while the run trained",
        Change(factor=1.0), specific=1, likely=9.0,
    )  # fmt: skip


def _precision(known: Evidence) -> Iterator[Trial]:
    session = known.record.session(known.event.step)
    precision = (session.precision if session else "") or known.recipe.train.precision
    if precision in ("fp32", "auto"):
        return
    overflow = known.event.kind == "non_finite" and precision == "fp16"
    yield Trial(
        "precision", "float32", f"the number format {precision}",
        Change(sets=_set(("train.precision", "fp32"))), specific=2,
        likely=9.5 if overflow else 2.5,
    )  # fmt: skip


def _scheme(known: Evidence) -> Iterator[Trial]:
    recipe = known.recipe
    if recipe.model.init == "custom":
        plain = schemes.get(str(recipe.init.get("base", "gpt2"))).name
        if any(key in recipe.init for key in ("lr", "eps", "decay")):
            keys = [key for key in ("lr", "eps", "decay") if key in recipe.init]
            yield Trial(
                "multipliers", f"no [init] {', '.join(keys)}",
                f"the factors on the optimizer in [init], {', '.join(keys)}",
                Change(sets=tuple(f"init.{key}={{}}" for key in keys)), specific=2, likely=8.2,
            )  # fmt: skip
    else:
        plain = "gpt2-w" if schemes.get(recipe.model.init).name == "gpt2" else "gpt2"
    yield Trial(
        "init", f"model.init = {plain}", "the initial values",
        Change(sets=_set(("model.init", plain))), scratch=True,
        specific=3 if recipe.model.init == "custom" else 7,
        likely=8.0 if recipe.model.init == "custom" else 4.0 if known.early else 1.0,
    )  # fmt: skip


def _decay(known: Evidence) -> Iterator[Trial]:
    optim = known.recipe.optim
    if not optim.weight_decay:
        return
    peak = max(optim.lr, optim.muon_lr if optim.name == "muon" else 0.0)
    # The share of a weight that a step takes away: 1e-3 is much already.
    strong = peak * optim.weight_decay > 2e-3 or known.first_is("weight_rms")
    yield Trial(
        "weight_decay", "no weight decay", f"weight decay, {optim.weight_decay:g}",
        Change(sets=_set(("optim.weight_decay", 0.0))), specific=4, likely=8.5 if strong else 1.5,
    )  # fmt: skip


def _momenta(known: Evidence) -> Iterator[Trial]:
    optim = known.recipe.optim
    beta1, beta2 = optim.betas
    other = 0.95 if beta2 > 0.95 else 0.99
    yield Trial(
        "beta2", f"β2 = {other}", f"β2 = {beta2:g}",
        Change(sets=(f"optim.betas=[{beta1}, {other}]",)), specific=4,
        likely=5.0 if beta2 >= 0.99 else 1.0,
    )  # fmt: skip
    if optim.name == "muon" and optim.momentum > 0.95:
        yield Trial(
            "momentum", "momentum = 0.95", f"Muon's momentum, {optim.momentum:g}",
            Change(sets=_set(("optim.momentum", 0.95))), specific=4, likely=8.0,
        )  # fmt: skip
    if beta1 > 0.95:
        yield Trial(
            "beta1", "β1 = 0.9", f"β1 = {beta1:g}",
            Change(sets=(f"optim.betas=[0.9, {beta2}]",)), specific=4, likely=8.0,
        )  # fmt: skip


def _warmup(known: Evidence) -> Iterator[Trial]:
    """Longer, but over before the event's window ends: else it would only postpone it."""
    optim, steps = known.recipe.optim, known.recipe.train.max_steps
    longer = max(3 * optim.warmup_steps, 40)
    if not known.early or known.start >= longer or longer > steps:
        return
    yield Trial(
        "warmup", f"warmup {longer} steps", f"a warmup of {optim.warmup_steps} steps",
        Change(sets=_set(("optim.warmup_steps", longer))), specific=5,
        likely=7.0 if optim.warmup_steps < 10 else 3.0,
    )  # fmt: skip


def _clipping(known: Evidence) -> Iterator[Trial]:
    clip = known.recipe.optim.grad_clip
    lower = 1.0 if not clip else clip / 4
    yield Trial(
        "clipping", f"grad_clip {lower:g}",
        f"gradients clipped at {clip:g}" if clip else "gradients that are not clipped",
        Change(sets=_set(("optim.grad_clip", lower))), specific=5,
        likely=6.0 if not clip else 2.0,
    )  # fmt: skip


def _qk_norm(known: Evidence) -> Iterator[Trial]:
    if known.recipe.model.qk_norm:
        return
    logits = known.first_is("attn_logit_max", "attn_entropy", "attn_score_std")
    yield Trial(
        "qk_norm", "QK-norm", "attention logits without a bound",
        Change(sets=_set(("model.qk_norm", True))), scratch=True, specific=6,
        likely=5.0 if logits else 1.2,
    )  # fmt: skip


def _rates(known: Evidence) -> Iterator[Trial]:
    optim = known.recipe.optim
    slow = known.event.kind in ("stuck", "frozen") or (
        known.event.kind == "update_ratio"
        and "of its weights" in known.event.message
        and (known.story.first is None or known.story.first.value < -5)
    )
    for divisor, specific, likely in ((3.0, 7, 6.0), (10.0, 8, 5.5), (30.0, 9, 2.0)):
        if optim.name == "muon":
            yield _muon_rate(optim.muon_lr, divisor, specific, likely + 0.1)
        yield _rate(optim, 1 / divisor, f"÷ {divisor:g}", specific, likely)
    if slow:
        yield replace(_rate(optim, 3.0, "× 3", 7, 6.5), kind="lr_up")


def lower_rates(known: Evidence, divisor: float) -> list[Trial]:
    """The learning rate divided by far more than usual."""
    optim = known.recipe.optim
    found = [_rate(optim, 1 / divisor, f"÷ {divisor:,.0f}", 9, 0.0)]
    if optim.name == "muon":
        found.append(_muon_rate(optim.muon_lr, divisor, 9, 0.0))
    return found


def _muon_rate(rate: float, divisor: float, specific: int, likely: float) -> Trial:
    return Trial(
        "lr", f"Muon's learning rate ÷ {divisor:,.0f}", f"Muon's learning rate, {rate:.3g}",
        Change(sets=_set(("optim.muon_lr", rate / divisor))), specific=specific, likely=likely,
    )  # fmt: skip


def _rate(optim: Any, factor: float, words: str, specific: int, likely: float) -> Trial:
    pairs = [("optim.lr", optim.lr * factor)]
    if optim.min_lr:
        pairs.append(("optim.min_lr", optim.min_lr * factor))
    whose = "AdamW's learning rate" if optim.name == "muon" else "learning rate"
    the = "" if optim.name == "muon" else "the "
    return Trial(
        "lr", f"{whose} {words}", f"{the}{whose}, {optim.lr:.4g}",
        Change(sets=_set(*pairs)), specific=specific, likely=likely,
    )  # fmt: skip


def cap(record: Record) -> float:
    """A loss beyond which nothing is worse, in nats."""
    return math.log(max(record.vocab_size, 2)) + 2.0
