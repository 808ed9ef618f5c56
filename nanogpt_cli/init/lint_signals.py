"""Verdicts in words on a forward and backward pass: limits, and how far chance may exceed them."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import replace
from typing import Protocol

from nanogpt_cli.init.lint import FAIL, NOTE, OK, WARN, Verdict
from nanogpt_cli.init.signals import Signals

MAX_GROWTH = 30.0
MAX_FIRST_STEP = 5.0
# RMS of a typical branch as a share of the embedding's; LayerNorm keeps it larger at any width.
MIN_BRANCH, MIN_BRANCH_WITHOUT_NORM = 0.03, 0.1
MAX_GRADIENT_RATIO = 30.0
# A head of std 1/√d gives logits of variance 1 and thus an excess of 0.5, where a limit would be
# exceeded by every other draw.
MAX_LOSS_EXCESS = 0.6
MIN_TOKEN_SHARE = 0.01
MAX_COSINE = 0.9
MAX_SCORE_STD = 1.5
MIN_PREACT_VARIANCE = 0.1
MAX_NEAR_ZERO = 0.5
DEVIATION_NOTE, DEVIATION_WARN = 0.05, 0.10
# How far the logarithm of one draw deviates from theory, times the square root of the width (for
# scores: of the number of heads). Of 500 sound models of 64 to 512 channels, 99 % stayed within 1.4
# for the residual stream and the cosine, 4.7 for gradients and 0.9 for scores.
_STREAM_SCATTER = 2.0
_GRADIENT_SCATTER = 6.0
_SCORE_SCATTER = 1.5


class Sizes(Protocol):
    """What limits and scatter depend on; a ``GPTConfig`` has it."""

    @property
    def n_embd(self) -> int:
        """Channels of the residual stream."""
        ...

    @property
    def n_head(self) -> int:
        """Heads."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the head."""
        ...


def on_signals(
    found: Signals,
    config: Sizes,
    expected: Signals | None = None,
    shallow: float = math.nan,
    *,
    layer_norm: bool = True,
    head: bool = True,
    known: bool = True,
    normed: bool = False,
    by_position: Container[int] = (),
) -> list[Verdict]:
    """Judge a forward and backward pass.

    Args:
        found: the measured signals, or the expected ones if nothing was measured.
        config: the model.
        expected: signals expected by theory, for comparison with measured ones. If the expectation
            is within a limit and chance explains the excess, the verdict is a note, not a warning.
        shallow: expected growth of the same scheme with 4 layers, to detect depth-independence.
        layer_norm: False where every LayerNorm was left out.
        head: False for a model without one, whose logits are not judged.
        known: False for a module whose scores may contain more than query·key, such as ALiBi.
        normed: True where the stream itself is normalised behind each addition (post-norm). Its
            first size then says nothing.
        by_position: blocks whose heads look for positions by design, and so are almost one-hot.
    """
    if broken := _not_finite(found, head=head):
        return [broken]
    checks: tuple[Iterator[Verdict], ...] = (
        *(() if normed else (_growth(found, expected, config, shallow),)),
        _deviation(found, expected, config),
        _branches(found, MIN_BRANCH if layer_norm else MIN_BRANCH_WITHOUT_NORM),
        *(() if normed else (_first_block(found, expected, config),)),
        _gradients(found, expected, config, normed=normed),
        *((_loss(found, expected, config), _own_token(found, expected, config)) if head else ()),
        _token_share(found),
        _attention(found, expected, config, WARN if known else NOTE, by_position),
        _activations(found, expected, config),
    )
    return [verdict for check in checks for verdict in check]


def on_trained(found: Signals, *, head: bool = True) -> list[Verdict]:
    """Judge a pass through a trained model, which may break most limits of a start."""
    if broken := _not_finite(found, head=head):
        return [broken]
    dead = max(found.near_zero)
    text = f"at most {dead:.0%} of a block's hidden units are dead (near zero on every token)"
    return [
        Verdict(OK, "finite", "loss, signals and gradients are finite numbers in every block"),
        Verdict(WARN if dead > MAX_NEAR_ZERO else OK, "silent-units", text, dead),
    ]


def _not_finite(found: Signals, *, head: bool = True) -> Verdict | None:
    loss = (found.loss,) if head else ()
    if all(map(math.isfinite, (*loss, *found.stream_rms, *found.grad_rms))):
        return None
    where = next((i for i, x in enumerate(found.stream_rms) if not math.isfinite(x)), None)
    place = "the loss" if where is None else f"the stream after block {where}"
    return Verdict(FAIL, "not-finite", f"{place} is not a finite number")


def _past(
    text: str,
    topic: str,
    found: float,
    limit: float,
    expected: float = math.nan,
    *,
    scatter: float,
    severity: str = WARN,
) -> Verdict | None:
    """The verdict on ``found`` if it exceeds ``limit``, else ``None``.

    A limit applies to the law, but a measurement is one draw of it. If theory expects a value below
    the limit and chance explains the excess, the verdict is a note; otherwise it has ``severity``.

    Args:
        text: the finding.
        topic: topic of the verdict.
        found: the measured value.
        limit: the largest value without a verdict.
        expected: value expected by theory; NaN if unknown.
        scatter: the most that chance adds to ``expected``.
        severity: severity of a verdict that chance does not explain.
    """
    if not found > limit:
        return None
    if expected <= limit and found <= expected + scatter:
        chance = f" (expected {expected:.3g}: within the scatter of a single draw)"
        return Verdict(NOTE, topic, text + chance, found)
    return Verdict(severity, topic, text, found)


def _factor(value: float, scatter: float, n: int) -> float:
    """The amount by which a factor of e^(scatter/√n) increases ``value``."""
    return value * math.expm1(scatter / math.sqrt(n))


def _growth(
    found: Signals, expected: Signals | None, config: Sizes, shallow: float
) -> Iterator[Verdict]:
    growth = found.growth
    theory = expected.growth if expected else math.nan
    text = (
        f"residual RMS {found.stream_rms[0]:.3g} → {found.stream_rms[-1]:.3g} over "
        f"{len(found.stream_rms) - 1} layers (×{growth:.3g}"
    )
    text += f", expected ×{theory:.3g})" if expected else ")"
    independent = abs(growth / shallow - 1) < 0.15 if shallow > 0 else False
    calm = ": the same as with 4 layers, independent of depth" if independent else ""
    past = _past(
        f"{text}: late blocks add little to so large a stream",
        "growth",
        growth,
        MAX_GROWTH,
        theory,
        scatter=_factor(theory, _STREAM_SCATTER, config.n_embd),
    )
    yield past or Verdict(OK, "growth", text + calm, growth)


def _branches(found: Signals, least: float) -> Iterator[Verdict]:
    """Branches that are small by accident; at 0 they are so by intention."""
    branches = (*found.attn_rms, *found.mlp_rms)
    typical = math.sqrt(sum(x * x for x in branches) / len(branches))
    if 0 < typical < least * found.stream_rms[0]:
        share = typical / found.stream_rms[0]
        text = f"a branch adds {share:.1%} of the embedding's RMS: the blocks hardly take part"
        yield Verdict(WARN, "branches", text, share)


def _deviation(found: Signals, expected: Signals | None, config: Sizes) -> Iterator[Verdict]:
    if expected is None:
        return
    pairs = list(zip(found.stream_rms, expected.stream_rms, strict=True))
    off = [abs(measured / theory - 1) if theory else 0.0 for measured, theory in pairs]
    largest = max(off)
    where = off.index(largest)
    # Theory is the limit of infinite width; a narrow model with few heads scatters around it.
    room = max(1.0, 32 / math.sqrt(config.n_embd))
    text = f"measured stream within {largest:.1%} of theory at every depth"
    if largest <= DEVIATION_NOTE * room:
        yield Verdict(OK, "theory", text, largest)
        return
    text = f"measured stream is {largest:.1%} off theory after block {where}"
    severity = WARN if largest > DEVIATION_WARN * room else NOTE
    yield Verdict(severity, "theory", text, largest)


def _first_step(signals: Signals | None) -> float:
    if signals is None:
        return math.nan
    before, after = signals.stream_rms[:2]
    return after / before if before else math.inf


def _first_block(found: Signals, expected: Signals | None, config: Sizes) -> Iterator[Verdict]:
    ratio, theory = _first_step(found), _first_step(expected)
    text = f"the first block makes the stream {ratio:.3g} times larger: it drowns the embedding"
    scatter = _factor(theory, _STREAM_SCATTER, config.n_embd)
    past = _past(text, "first-block", ratio, MAX_FIRST_STEP, theory, scatter=scatter)
    if past:
        yield past


def _gradients(
    found: Signals, expected: Signals | None, config: Sizes, *, normed: bool
) -> Iterator[Verdict]:
    where = "at the embedding"
    if normed and len(found.grad_rms) > 1:  # behind the first norm all depths have one size
        where = "after the first block"
        found = replace(found, grad_rms=found.grad_rms[1:])
        expected = replace(expected, grad_rms=expected.grad_rms[1:]) if expected else None
    ratio = found.gradient_ratio
    theory = expected.gradient_ratio if expected else math.nan
    if math.isnan(ratio):
        return
    text = f"gradient {where} {ratio:.3g} times that after the last block"
    inverse, inverse_theory = (1 / x if x else math.inf for x in (ratio, theory))
    found_past = [
        _past(f"{text}: {why}", "gradients", r, MAX_GRADIENT_RATIO, t,
              scatter=_factor(t, _GRADIENT_SCATTER, config.n_embd))
        for r, t, why in (
            (ratio, theory, "early blocks dominate"),
            (inverse, inverse_theory, "early blocks hardly learn"),
        )
    ]  # fmt: skip
    past = next((v for v in found_past if v), None)
    yield replace(past, value=ratio) if past else Verdict(OK, "gradients", text, ratio)


def _loss(found: Signals, expected: Signals | None, config: Sizes) -> Iterator[Verdict]:
    log_v = math.log(config.vocab_size)
    excess = found.loss_any - log_v
    theory, scatter = math.nan, 0.0
    if expected:
        theory = expected.loss_any - log_v
        # Twice the standard error of the log-sum-exp of V normal logits, alike for all tokens.
        variance = min(expected.logit_std**2, log_v)
        scatter = 2 * math.sqrt(math.expm1(variance) / config.vocab_size)
    text = f"loss over all targets {found.loss_any:.3f} = ln V {excess:+.3f}"
    why = f"{text}: the first steps will be spent on shrinking the logits"
    past = _past(why, "loss", excess, MAX_LOSS_EXCESS, theory, scatter=scatter)
    yield past or Verdict(OK, "loss", text, excess)


def _own_token(found: Signals, expected: Signals | None, config: Sizes) -> Iterator[Verdict]:
    log_v = math.log(config.vocab_size)
    text = (
        f"logit of the token just read is {found.own_logit:.3g}, above ln V = {log_v:.3g}: "
        "the model copies its input (tied head, large embeddings)"
    )
    past = _past(
        text,
        "own-token",
        found.own_logit,
        log_v,
        expected.own_logit if expected else math.nan,
        scatter=expected.logit_std if expected else 0.0,  # of one token's logit
        severity=FAIL,
    )
    if past:
        yield past


def _token_share(found: Signals) -> Iterator[Verdict]:
    share = found.token_share
    if share < MIN_TOKEN_SHARE:
        text = f"tokens make up {share:.2%} of the embedding's variance: positions drown them"
        yield Verdict(FAIL, "token-share", text, share)


def _attention(
    found: Signals,
    expected: Signals | None,
    config: Sizes,
    severity: str,
    by_position: Container[int],
) -> Iterator[Verdict]:
    judged = [n for n in range(len(found.score_std)) if n not in by_position]
    cosine, score = found.cosine[-1], max((found.score_std[n] for n in judged), default=0.0)
    likely_cosine = expected.cosine[-1] if expected else math.nan
    likely_score = math.nan
    if expected:
        likely_score = max((expected.score_std[n] for n in judged), default=0.0)
    checks = (
        _past(
            f"positions have cosine {cosine:.2f} after the last block: they have become alike",
            "rank-collapse",
            cosine,
            MAX_COSINE,
            likely_cosine,
            scatter=_STREAM_SCATTER / math.sqrt(config.n_embd),
        ),
        _past(
            f"attention scores have std {score:.2f}: some heads start nearly one-hot"
            + ("" if severity == WARN else ", unless that is how they tell distance"),
            "score-std",
            score,
            MAX_SCORE_STD,
            likely_score,
            scatter=_factor(likely_score, _SCORE_SCATTER, config.n_head),
            severity=severity,
        ),
    )
    yield from (verdict for verdict in checks if verdict)


def _activations(found: Signals, expected: Signals | None, config: Sizes) -> Iterator[Verdict]:
    q = found.preact_std[0] ** 2
    if q < MIN_PREACT_VARIANCE:
        text = (
            f"pre-activation variance q = {q:.2g} at width {config.n_embd}: the MLP is nearly "
            "linear and weak; gpt2-w and small-wang adapt the std to the width"
        )
        yield Verdict(NOTE, "weak-branches", text, q)
    dead = max(found.near_zero)
    text = f"{dead:.0%} of a block's hidden units are dead (near zero on every token)"
    theory = max(expected.near_zero) if expected else math.nan
    scatter = _STREAM_SCATTER / math.sqrt(config.n_embd)
    past = _past(text, "silent-units", dead, MAX_NEAR_ZERO, theory, scatter=scatter)
    if past:
        yield past
    if max(found.attn_rms + found.mlp_rms) == 0:
        text = "the residual projections are zero: every block starts as the identity"
        yield Verdict(NOTE, "identity", text, 0.0)
