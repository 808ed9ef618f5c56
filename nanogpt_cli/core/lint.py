"""Verdicts in words on an initialisation: what is fine, what is odd, what will not work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from nanogpt_cli.core.model import GPTConfig
from nanogpt_cli.core.signals import Signals
from nanogpt_cli.core.tensor_stats import KS_LIMIT, ClassStats, TensorStats
from nanogpt_cli.laws import LARGEST_NORMAL
from nanogpt_cli.schemes import Scheme

OK, NOTE, WARN, FAIL = "ok", "note", "warn", "fail"
SEVERITIES = (OK, NOTE, WARN, FAIL)

MAX_GROWTH = 30.0
MAX_FIRST_STEP = 5.0
MAX_GRADIENT_RATIO = 30.0
# A head of std 1/√d gives logits of variance 1 and so exactly 0.5: a limit there would toss a coin.
MAX_LOSS_EXCESS = 0.6
MIN_TOKEN_SHARE = 0.01
MAX_COSINE = 0.9
MAX_SCORE_STD = 1.5
MIN_PREACT_VARIANCE = 0.1
MAX_NEAR_ZERO = 0.5
DEVIATION_NOTE, DEVIATION_WARN = 0.05, 0.10


@dataclass(frozen=True)
class Verdict:
    """One finding.

    Attributes:
        severity: one of ``SEVERITIES``.
        topic: a stable short name, for scripts.
        text: a sentence with its number and reason.
        value: the number the rule looked at.
    """

    severity: str
    topic: str
    text: str
    value: float = math.nan


def worst(verdicts: Iterable[Verdict]) -> str:
    """The gravest severity among them."""
    return max((v.severity for v in verdicts), key=SEVERITIES.index, default=OK)


def on_signals(
    found: Signals, config: GPTConfig, expected: Signals | None = None, shallow: float = math.nan
) -> list[Verdict]:
    """Judge a forward and backward pass.

    Args:
        found: measured, or expected where nothing was measured.
        config: of the model.
        expected: by theory, to compare a measurement with.
        shallow: expected growth of the same scheme with 4 layers, to tell depth-independence.
    """
    numbers = (found.loss, *found.stream_rms, *found.grad_rms)
    if not all(map(math.isfinite, numbers)):
        where = next((i for i, x in enumerate(found.stream_rms) if not math.isfinite(x)), None)
        place = "the loss" if where is None else f"the stream after block {where}"
        return [Verdict(FAIL, "not-finite", f"{place} is not a finite number")]
    checks = (
        _growth(found, expected, shallow),
        _deviation(found, expected, config),
        _first_block(found),
        _gradients(found),
        _loss(found, config),
        _own_token(found, config),
        _token_share(found),
        _attention(found),
        _activations(found, config),
    )
    return [verdict for check in checks for verdict in check]


def _growth(found: Signals, expected: Signals | None, shallow: float) -> Iterator[Verdict]:
    growth = found.growth
    text = (
        f"residual RMS {found.stream_rms[0]:.3g} → {found.stream_rms[-1]:.3g} over "
        f"{len(found.stream_rms) - 1} layers (×{growth:.3g}"
    )
    text += f", expected ×{expected.growth:.3g})" if expected else ")"
    independent = abs(growth / shallow - 1) < 0.15 if shallow > 0 else False
    if growth > MAX_GROWTH:
        text += ": late blocks add little to so large a stream"
        yield Verdict(WARN, "growth", text, growth)
    else:
        text += ": the same as with 4 layers, independent of depth" if independent else ""
        yield Verdict(OK, "growth", text, growth)


def _deviation(found: Signals, expected: Signals | None, config: GPTConfig) -> Iterator[Verdict]:
    if expected is None:
        return
    pairs = list(zip(found.stream_rms, expected.stream_rms, strict=True))
    off = [abs(measured / theory - 1) if theory else 0.0 for measured, theory in pairs]
    largest = max(off)
    where = off.index(largest)
    # Theory is the limit of infinite width; one narrow model, with few heads, scatters around it.
    room = max(1.0, 32 / math.sqrt(config.n_embd))
    text = f"measured stream within {largest:.1%} of theory at every depth"
    if largest <= DEVIATION_NOTE * room:
        yield Verdict(OK, "theory", text, largest)
        return
    text = f"measured stream {largest:.1%} off theory after block {where}"
    severity = WARN if largest > DEVIATION_WARN * room else NOTE
    yield Verdict(severity, "theory", text, largest)


def _first_block(found: Signals) -> Iterator[Verdict]:
    before, after = found.stream_rms[:2]
    ratio = after / before if before else math.inf
    if ratio > MAX_FIRST_STEP:
        text = f"the first block makes the stream {ratio:.3g} times larger: it drowns the embedding"
        yield Verdict(WARN, "first-block", text, ratio)


def _gradients(found: Signals) -> Iterator[Verdict]:
    ratio = found.gradient_ratio
    if math.isnan(ratio):
        return
    text = f"gradient at the embedding {ratio:.3g} times that after the last block"
    if ratio > MAX_GRADIENT_RATIO:
        yield Verdict(WARN, "gradients", f"{text}: early blocks dominate", ratio)
    elif ratio < 1 / MAX_GRADIENT_RATIO:
        yield Verdict(WARN, "gradients", f"{text}: early blocks hardly learn", ratio)
    else:
        yield Verdict(OK, "gradients", text, ratio)


def _loss(found: Signals, config: GPTConfig) -> Iterator[Verdict]:
    log_v = math.log(config.vocab_size)
    excess = found.loss_any - log_v
    text = f"loss over all targets {found.loss_any:.3f} = ln V {excess:+.3f}"
    if excess > MAX_LOSS_EXCESS:
        yield Verdict(WARN, "loss", f"{text}: the first steps go into shrinking logits", excess)
    else:
        yield Verdict(OK, "loss", text, excess)


def _own_token(found: Signals, config: GPTConfig) -> Iterator[Verdict]:
    log_v = math.log(config.vocab_size)
    if found.own_logit > log_v:
        text = (
            f"logit of the token just read is {found.own_logit:.3g}, above ln V = {log_v:.3g}: "
            "the model copies its input (tied head, large embeddings)"
        )
        yield Verdict(FAIL, "own-token", text, found.own_logit)


def _token_share(found: Signals) -> Iterator[Verdict]:
    share = found.token_share
    if share < MIN_TOKEN_SHARE:
        text = f"tokens make up {share:.2%} of the embedding's variance: positions drown them"
        yield Verdict(FAIL, "token-share", text, share)


def _attention(found: Signals) -> Iterator[Verdict]:
    cosine, score = found.cosine[-1], max(found.score_std)
    if cosine > MAX_COSINE:
        text = f"positions have cosine {cosine:.2f} at the end: they have become alike"
        yield Verdict(WARN, "rank-collapse", text, cosine)
    if score > MAX_SCORE_STD:
        text = f"attention scores have std {score:.2f}: some heads start decided"
        yield Verdict(WARN, "score-std", text, score)


def _activations(found: Signals, config: GPTConfig) -> Iterator[Verdict]:
    q = found.preact_std[0] ** 2
    if q < MIN_PREACT_VARIANCE:
        text = (
            f"pre-activation variance q = {q:.2g} at width {config.n_embd}: the MLP is nearly "
            "linear and weak; gpt2-w or small-wang let the std follow the width"
        )
        yield Verdict(NOTE, "weak-branches", text, q)
    silent = max(found.near_zero)
    if silent > MAX_NEAR_ZERO:
        text = f"{silent:.0%} of a block's hidden units are silent on every token"
        yield Verdict(WARN, "silent-units", text, silent)
    if max(found.attn_rms + found.mlp_rms) == 0:
        text = "projections are zero: every block starts as the identity"
        yield Verdict(NOTE, "identity", text, 0.0)


def on_scheme(scheme: Scheme, classes: Iterable[ClassStats] = ()) -> list[Verdict]:
    """Judge what a scheme declares, before a weight is looked at."""
    found = []
    if scheme.mismatch:
        text = f"architecture mismatch: {scheme.name} is written for {scheme.mismatch}"
        found.append(Verdict(WARN, "mismatch", text))
    for name, rule in scheme.rules.items():
        if rule.kind == "truncated" and rule.cut >= LARGEST_NORMAL:
            text = f"{name}: truncation at ±{rule.cut:g}σ never cuts anything"
            found.append(Verdict(WARN, "truncation", text, rule.cut))
    return found + on_laws(classes)


def on_laws(classes: Iterable[ClassStats]) -> list[Verdict]:
    """Compare measured matrices with their declared laws."""
    classes = list(classes)
    found = [verdict for c in classes for verdict in _faults(c)]
    checked = [c for c in classes if not math.isnan(c.expected_std)]
    if checked and not found:
        n = sum(len(c.tensors) for c in checked)
        found.append(Verdict(OK, "laws", f"all {n} tensors follow their laws"))
    return found


def _faults(c: ClassStats) -> Iterator[Verdict]:
    broken = [t for t in c.tensors if not t.finite]
    if broken:
        text = f"{_which(broken, c)}: values that are not finite numbers"
        yield Verdict(FAIL, "not-finite", text)
    off = [t for t in c.off if t.finite]
    if not off:
        return
    t = max(off, key=_distance)
    yield Verdict(FAIL, "law", f"{_which(off, c)}: {_why(t)}", t.std)


def _distance(t: TensorStats) -> float:
    return abs(t.z) if math.isfinite(t.z) else math.inf


def _which(off: list[TensorStats], c: ClassStats) -> str:
    if len(off) == 1:
        return off[0].key
    if len(off) == len(c.tensors):
        return f"{c.tensor_class} (all {len(off)})"
    layers = [t.layer for t in off if t.layer >= 0]
    apart = all(b - a == 1 for a, b in pairwise(layers))
    return f"{c.tensor_class} (" + (
        f"blocks {layers[0]}-{layers[-1]})" if apart and layers else f"{len(off)} tensors)"
    )


def _why(t: TensorStats) -> str:
    """What about a tensor disagrees with its law."""
    assert t.law is not None
    if t.constant:
        return f"constant {t.minimum:g}, expected {t.law}"
    if t.law.kind == "constant":
        return f"std {t.std:.3g}, expected the constant {t.law}"
    ratio = t.std / t.expected_std
    if t.law.kind == "truncated" and t.exceeds(t.law):
        reach = t.reach / t.law.scale
        return f"values reach {reach:.1f}σ, expected a cut at ±{t.law.cut:g}σ: it never cuts"
    if abs(t.z) >= 5.5:
        return f"std {t.std:.4g} is {ratio:.3f} times the expected {t.expected_std:.4g} ({t.law})"
    if t.ks_scaled >= KS_LIMIT:
        return f"not {t.law}: Kolmogorov-Smirnov distance {t.ks:.4f}, kurtosis {t.kurtosis:.2f}"
    return f"mean {t.mean:.3g}, expected 0"
