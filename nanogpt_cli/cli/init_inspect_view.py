"""One inspection from theory to verdicts: computes, prints as it goes, writes files."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt_cli.cli import console
from nanogpt_cli.cli import init_inspect_output as output
from nanogpt_cli.cli.init_inspect_input import Subject, check_memory, tokens
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor

    from nanogpt_cli.init.inspect import Inspection
    from nanogpt_cli.init.lint import Verdict
    from nanogpt_cli.init.signals import Signals

# Most tokens theory is computed on for the first screen, and beside a measurement.
_QUICK, _BESIDE = 128, 512


@dataclass(frozen=True)
class Ask:
    """How to look: tokens, depth of detail, form of the answer."""

    seed: int
    data: str
    batch: int
    length: int
    gradients: bool
    theory_only: bool
    full: bool
    hist: bool
    as_json: bool


@dataclass(frozen=True)
class Files:
    """What to write besides the screen."""

    csv: Path | None
    png: Path | None
    svg: Path | None
    tui: bool


def inspect(subject: Subject, ask: Ask, tokenizer: str, files: Files) -> bool:
    """Show everything; True if a check failed.

    Raises:
        UserError: something cannot be read or computed; after the page, for weights that are not
            numbers.
    """
    from nanogpt_cli.cli.init_inspect_plot import check
    from nanogpt_cli.init import lint

    for path in (files.png, files.svg):
        if path:
            check(path)
    if not ask.theory_only:
        check_memory(subject.config)
    idx, targets, label = tokens(
        subject.config, ask.data, ask.batch, ask.length, ask.seed, tokenizer
    )
    quiet = ask.as_json
    if not quiet:
        output.header(subject, label, ask.seed)
    expected = _theory(subject, idx, targets, ask, quiet)
    found = None
    if not ask.theory_only or expected is None:
        found = _measure(subject, idx, targets, ask)
        expected = _beside(subject, idx, targets, ask)
        if not quiet:
            output.measured(subject, found, expected, n_tokens=idx.numel(), full=ask.full)
    elif not quiet:
        output.declared(subject, expected)
    verdicts = _judge(subject, expected, found)
    if not quiet:
        output.judge(verdicts)
    _write(files, subject, expected, found)
    if quiet:
        console.emit_json(output.as_json(subject, expected, found, verdicts))
    _refuse_broken(found)
    return lint.worst(verdicts) == lint.FAIL


def _refuse_broken(found: Inspection | None) -> None:
    broken = [t.key for t in found.tensors if not t.finite] if found else []
    if broken:
        more = f" and {len(broken) - 1} more" if broken[1:] else ""
        raise UserError(
            f"{broken[0]}{more} holds NaN or infinity: these weights cannot run",
            "the page shows how far the stream gets; look for an earlier checkpoint",
        )


def _theory(
    subject: Subject, idx: Tensor, targets: Tensor, ask: Ask, quiet: bool
) -> Signals | None:
    """Expected signals on a part of the tokens, shown at once; None for foreign weights."""
    from nanogpt_cli.init.theory import expect

    if subject.scheme is None:
        return None
    begin = time.perf_counter()
    part = slice(0, 1), slice(0, _QUICK)
    expected = expect(
        subject.config, subject.scheme, idx[part], targets[part], backward=ask.gradients
    )
    if not quiet:
        output.theory(expected, subject.config.vocab_size, time.perf_counter() - begin)
    return expected


def _beside(subject: Subject, idx: Tensor, targets: Tensor, ask: Ask) -> Signals | None:
    """Expected signals on the tokens that are measured.

    On more tokens than theory can take, those of its first ones: gradients of a mean over N tokens
    are rescaled, those of weights, which depend on all tokens together, left out.
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


def _measure(subject: Subject, idx: Tensor, targets: Tensor, ask: Ask) -> Inspection:
    from nanogpt_cli.init.inspect import measure

    with progress("measuring") as report:
        return measure(
            subject.source,
            idx,
            targets,
            backward=ask.gradients,
            histograms=ask.hist,
            progress=report,
        )


def progress(what: str) -> AbstractContextManager[Callable[[int, int], None] | None]:
    """A bar on stderr while something runs, where a person watches."""
    if not console.stderr().is_terminal:
        return nullcontext()
    return _Bar(what)


class _Bar:
    """A transient Rich progress bar as a ``progress(done, total)`` callback."""

    def __init__(self, what: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(40), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console.stderr(), transient=True)
        self.what = what

    def __enter__(self) -> Callable[[int, int], None]:
        self.bar.start()
        task = self.bar.add_task(self.what, total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _judge(subject: Subject, expected: Signals | None, found: Inspection | None) -> list[Verdict]:
    from nanogpt_cli.init import detect, lint, lint_signals
    from nanogpt_cli.init.study import shallow_growth
    from nanogpt_cli.init.tensor_stats import by_class

    signals = found.signals if found else expected
    assert signals is not None
    shallow = float("nan")
    if subject.scheme is not None:
        shallow = shallow_growth(subject.config, subject.scheme)
    beside = expected if found else None
    verdicts = lint_signals.on_signals(signals, subject.config, beside, shallow)
    if subject.scheme is not None:
        classes = by_class(found.tensors) if found else []
        return lint.on_scheme(subject.scheme, classes) + verdicts
    assert found is not None
    return detect.lint_foreign(found.tensors, subject.config) + verdicts


def _write(
    files: Files, subject: Subject, expected: Signals | None, found: Inspection | None
) -> None:
    if files.csv:
        output.write_csv(files.csv, expected, found)
        console.say(f"wrote {files.csv}")
    for path in (files.png, files.svg):
        if path:
            from nanogpt_cli.cli.init_inspect_plot import draw

            c, scheme = subject.config, subject.scheme
            title = f"{subject.label}: {c.n_layer} layers × {c.n_embd} channels"
            title += f", init {scheme.name}" if scheme else ""
            draw(path, title, found.signals if found else None, expected)
            console.say(f"wrote {path}")
    if files.tui:
        from nanogpt_cli.cli.init_inspect_layers import show

        show(subject, found.signals if found else None, expected)
