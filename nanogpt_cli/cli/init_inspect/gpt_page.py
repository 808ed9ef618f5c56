"""The page of ``nanogpt init-inspect`` on a GPT of this package: theory, measurement, verdicts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nanogpt_cli.cli import console
from nanogpt_cli.cli.init_inspect import printed, spectral_norms, written
from nanogpt_cli.cli.init_inspect import subject as inputs
from nanogpt_cli.cli.init_inspect import verdicts as answers
from nanogpt_cli.cli.init_inspect.subject import InspectOptions, Subject
from nanogpt_cli.cli.init_inspect.written import About, Files
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from nanogpt_cli.init.inspect import Inspection
    from nanogpt_cli.init.lint import Verdict
    from nanogpt_cli.init.signals import Signals

# The most tokens that theory is computed on, for the first screen and beside a measurement.
_QUICK, _BESIDE = 128, 512


def inspect(subject: Subject, ask: InspectOptions, tokenizer: str, files: Files) -> str:
    """Print the whole inspection and write files; returns the gravest severity of a verdict.

    Raises:
        UserError: something cannot be read or computed, or (after the page is printed) the weights
            contain NaN or infinity.
    """
    from nanogpt_cli.init import lint

    files.check()
    if not ask.theory_only:
        inputs.check_memory(subject.config)
    idx, targets, label = inputs.tokens(
        subject.config, ask.data, ask.batch, ask.length, ask.seed, tokenizer
    )
    quiet = ask.as_json
    training = _dropout_factors(subject, idx, targets)
    if not quiet:
        printed.header(subject, label, ask.seed, training, details=ask.details)
    expected = _theory(subject, idx, targets, ask, quiet)
    found = None
    if not ask.theory_only or expected is None:
        found = _measure(subject, idx, targets, ask)
        expected = _beside(subject, idx, targets, ask)
    verdicts = _judge(subject, expected, found)
    if not quiet:
        _show(subject, ask, label, expected, found, verdicts, idx.numel())
    norms = spectral_norms.measure(subject) if ask.full and found else []
    if norms and not quiet:
        spectral_norms.show(norms, subject)
    written.write(files, _about(subject), expected, found, verdicts)
    if quiet:
        answer = printed.as_json(subject, expected, found, verdicts, training)
        console.emit_json(answer | {"spectral": spectral_norms.as_json(norms, subject)})
    _refuse_broken(found)
    return lint.worst(verdicts)


def _show(
    subject: Subject,
    ask: InspectOptions,
    tokens: str,
    expected: Signals | None,
    found: Inspection | None,
    verdicts: list[Verdict],
    n_tokens: int,
) -> None:
    """Print the answer, then the chart and tables behind it."""
    c = subject.config
    basis = f"{tokens}, seed {ask.seed}" if found else f"theory for {tokens}"
    scheme = subject.scheme.name if subject.scheme and not subject.trained else ""
    judged = answers.Judged(basis, subject.trained and found is not None, scheme)
    shown = answers.answer(verdicts, judged, whole=ask.details)
    extent = printed.Extent(ask.details, ask.full, shown)
    if found:
        printed.measured(
            found, expected, n_embd=c.n_embd, vocab_size=c.vocab_size, tied=c.tied,
            n_tokens=n_tokens, extent=extent,
        )  # fmt: skip
    elif expected:
        printed.declared(subject, expected, extent)


def _refuse_broken(found: Inspection | None) -> None:
    broken = [t.key for t in found.tensors if not t.finite] if found else []
    if broken:
        more = f" and {len(broken) - 1} more" if broken[1:] else ""
        raise UserError(
            f"{broken[0]}{more} contains NaN or infinity: these weights cannot run",
            "the tables show up to which block signals are finite; try an earlier checkpoint",
        )


def _theory(
    subject: Subject, idx: Tensor, targets: Tensor, ask: InspectOptions, quiet: bool
) -> Signals | None:
    """Expected signals on some of the tokens, printed at once; ``None`` without a scheme."""
    from nanogpt_cli.init.theory import expect

    if subject.scheme is None:
        return None
    begin = time.perf_counter()
    part = slice(0, 1), slice(0, _QUICK)
    expected = expect(
        subject.config, subject.scheme, idx[part], targets[part], backward=ask.gradients
    )
    if quiet:
        return expected
    if ask.details:
        printed.theory(expected, subject.config.vocab_size, time.perf_counter() - begin)
    elif not ask.theory_only and not subject.trained:
        answers.early(_judge(subject, expected, None), time.perf_counter() - begin)
    return expected


def _dropout_factors(subject: Subject, idx: Tensor, targets: Tensor) -> list[float]:
    """The stream's RMS in training mode over that in evaluation mode, by theory, for each depth.

    Empty without dropout, or if the law of the weights is not known.
    """
    from nanogpt_cli.init.theory import dropout_factors

    if not subject.config.dropout or subject.scheme is None:
        return []
    part = slice(0, 1), slice(0, _QUICK)
    return dropout_factors(subject.config, subject.scheme, idx[part], targets[part])


def _beside(subject: Subject, idx: Tensor, targets: Tensor, ask: InspectOptions) -> Signals | None:
    """Expected signals on the tokens that are measured.

    If these are too many for theory, only the first are used: gradients of the mean loss over N
    tokens are then rescaled, and those of weights, which depend on all tokens jointly, left out.
    """
    from nanogpt_cli.init.theory import expect

    if subject.scheme is None:
        return None
    n = idx.numel()
    part = (slice(None), slice(None)) if n <= _BESIDE else (slice(0, 1), slice(0, _BESIDE))
    idx, targets = idx[part], targets[part]
    found = expect(subject.config, subject.scheme, idx, targets, backward=ask.gradients)
    if idx.numel() < n:
        found.grad_rms = [g * idx.numel() / n for g in found.grad_rms]
        found.weight_grad = {}
    return found


def _measure(subject: Subject, idx: Tensor, targets: Tensor, ask: InspectOptions) -> Inspection:
    from nanogpt_cli.init.inspect import measure

    with console.progress_bar("measuring") as report:
        return measure(
            subject.source,
            idx,
            targets,
            backward=ask.gradients,
            histograms=ask.hist,
            progress=report,
        )


def _judge(subject: Subject, expected: Signals | None, found: Inspection | None) -> list[Verdict]:
    from nanogpt_cli.init import lint, lint_parts, lint_signals
    from nanogpt_cli.init.blueprint import Blueprint
    from nanogpt_cli.init.study import shallow_growth
    from nanogpt_cli.init.tensor_stats import by_class

    if subject.scheme is None or (subject.trained and found is not None):
        assert found is not None
        return _judge_stored(subject, found.signals)
    signals = found.signals if found else expected
    assert signals is not None
    beside, shallow = expected if found else None, shallow_growth(subject.config, subject.scheme)
    classes = by_class(found.tensors) if found else []
    verdicts = lint.on_scheme(subject.scheme, classes)
    plan = Blueprint.of(subject.config, subject.scheme)
    verdicts += lint_signals.on_signals(
        signals, subject.config, beside, shallow, by_position=plan.by_position
    )
    return verdicts + lint_parts.on_parts(plan, subject.config.block_size, signals.stream_rms[0])


def _judge_stored(subject: Subject, signals: Signals) -> list[Verdict]:
    """Judge weights of unknown origin, as a start or as trained."""
    from nanogpt_cli.init.lint_signals import on_signals, on_trained
    from nanogpt_cli.modules.inspection import judge_weights

    assert subject.module is not None
    verdicts, trained = judge_weights(subject.module, trained=True if subject.trained else None)
    return verdicts + (on_trained(signals) if trained else on_signals(signals, subject.config))


def _about(subject: Subject) -> About:
    from nanogpt_cli.model.accounting import account

    c, scheme = subject.config, subject.scheme
    title = f"{subject.label}: {c.n_layer} layers × {c.n_embd} channels"
    title += f", init {scheme.name}" if scheme else ""
    return About(subject.label, title, account(c).parameters, c.vocab_size, c.n_layer)
