"""Output of ``nanogpt init-inspect``: printed sections and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nanogpt_cli.cli import console
from nanogpt_cli.cli.init_inspect import tables
from nanogpt_cli.units import counted

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from nanogpt_cli.cli.init_inspect.subject import Subject
    from nanogpt_cli.init.inspect import Inspection
    from nanogpt_cli.init.lint import Verdict
    from nanogpt_cli.init.signals import Signals
    from nanogpt_cli.model.gpt import GPTConfig

# Lines of the first page; a lower terminal does not get its table.
_PAGE = 38
_WIDTH = 100


def header(
    subject: Subject, tokens: str, seed: int, training: list[float], *, details: bool
) -> None:
    """Print model and scheme in a line each, with ``details`` also laws, sizes and work.

    ``training``: see ``dropout_factors``.
    """
    c, scheme = subject.config, subject.scheme
    layers, channels = counted(c.n_layer, "layer"), counted(c.n_embd, "channel")
    text = f": {layers}, {channels}, {counted(c.n_head, 'head')}, "
    rows = [("model", console.styled((subject.label, "bold cyan"), text + _rest(c, details)))]
    if scheme is not None:
        about = scheme.about if details else in_one_line(scheme.about, len(scheme.name))
        rows.append(("scheme", console.styled((scheme.name, "bold cyan"), f": {about}")))
    if details:
        rows += [(kind, console.styled(text)) for kind, text in _laws_and_sizes(subject)]
        rows.append(("input", console.styled(f"{tokens}, seed {seed}")))
    if c.dropout:
        text = f"evaluation, with dropout off; training drops {c.dropout:g}"
        if training:
            text += f", which makes the stream's RMS {training[0]:.3f} times as large at the "
            text += f"embedding and {training[-1]:.3f} times after the last block (theory)"
        rows.append(("mode", console.styled(text)))
    lines(rows, subject.notes)


def lines(rows: Sequence[tuple[str, Text]], notes: Sequence[str]) -> None:
    """Print the rows of a header, and the notes below them."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    for kind, text in rows:
        grid.add_row(kind, text)
    for note in notes:
        grid.add_row("note", console.styled((note, "yellow")))
    console.stdout().print(grid)


def in_one_line(about: str, taken: int) -> str:
    """As much of a description as fits the line: all of it, or what stands before a colon.

    Args:
        about: the description.
        taken: characters of the name before it.
    """
    room = min(console.stdout().width, _WIDTH) - len("scheme  : ") - taken
    return about if len(about) <= room else about.partition(": ")[0].partition("; ")[0]


def _rest(c: GPTConfig, details: bool) -> str:
    from nanogpt_cli.model.accounting import account

    if not details:
        return f"{console.count(account(c).parameters)} parameters"
    bias, tied = "biases" if c.bias else "no biases", "tied head" if c.tied else "untied head"
    return f"context {c.block_size}, vocabulary {c.vocab_size}, {c.activation}, {bias}, {tied}"


def _laws_and_sizes(subject: Subject) -> Iterator[tuple[str, str]]:
    """Rows on the scheme's laws, and on what the model costs."""
    from nanogpt_cli.model.accounting import account

    scheme, sizes, n = subject.scheme, account(subject.config), console.count
    if scheme is not None:
        yield "", scheme.formula
        factors = "; ".join(f"{k} {v}" for k, v in scheme.multipliers.items())
        rate, eps, decay = (f.get("fc", "1") for f in (scheme.lr, scheme.eps, scheme.decay))
        if factors or scheme.lr:
            text = f"multipliers: {factors or 'none'}; learning rate of matrices × {rate}"
            more = ((" their ε ×", eps), (" their weight decay ×", decay))
            yield "", "".join([text, *(f",{k} {v}" for k, v in more if v != "1")])
        yield "", scheme.source
    size = f"{n(sizes.parameters)} parameters, {n(sizes.non_embedding)} without tables; "
    yield "size", f"{size}weight decay on {n(sizes.decayed)}"
    flops = f"{n(sizes.flops_training)} FLOPs a token to train (6N + 12LdT), "
    yield "work", f"{flops}{n(sizes.flops_forward)} forward (exact)"
    parts = ", ".join(f"{name} {_bytes(size)}" for name, size in sizes.memory.items())
    total = _bytes(sum(sizes.memory.values()))
    yield "memory", f"{total} to train in float32, one sequence at a time: {parts}"


def _bytes(size: float) -> str:
    for limit, unit in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= limit:
            return f"{size / limit:.3g} {unit}"
    return f"{size / 1024:.0f} KiB"


def theory(expected: Signals, vocab_size: int, seconds: float) -> None:
    """Print what theory expects before a weight is drawn."""
    out = console.stdout()
    number = tables.number
    took = f"({seconds:.1f} s, no weight drawn)"
    out.print(console.styled("\n", ("Expected by theory", "bold"), " ", (took, "dim")))
    a, b = number(expected.stream_rms[0]), number(expected.stream_rms[-1])
    gradient = ""
    if expected.grad_rms:
        gradient = f"   gradient embed/last ×{number(expected.gradient_ratio)}"
    out.print(f"  stream RMS {a} → {b} (×{number(expected.growth)}){gradient}")
    log_v = math.log(vocab_size)
    out.print(
        f"  loss {expected.loss_any:.3f} = ln V {log_v:.3f} {expected.loss_any - log_v:+.3f}   "
        f"logit std {expected.logit_std:.3f}   own-token logit {expected.own_logit:.2f}"
    )


def curves(measured: Signals | None, expected: Signals | None, height: int) -> None:
    """Print the chart over depth with its legend, ``height`` rows of curves."""
    out = console.stdout()
    legend: list[str | tuple[str, str]] = [("stream RMS", "cyan")]
    if (measured or expected) and (measured or expected).grad_rms:  # type: ignore[union-attr]
        legend += [", ", ("gradient RMS", "magenta"), " (scaled: shape only)"]
    if measured and expected:
        legend += ["; ", ("grey: expected", "bright_black")]
    out.print(console.styled("\n", ("Over depth", "bold"), "  ", *legend))
    out.print(tables.picture(measured, expected, min(out.width, _WIDTH) - 2, height), end="")
    out.print()


def declared(subject: Subject, expected: Signals, extent: Extent) -> None:
    """Print the declared laws and expected tables in place of a measurement, for ``--theory``."""
    from nanogpt_cli.init.expected import expected_tensors
    from nanogpt_cli.init.tensor_stats import by_class

    out, config = console.stdout(), subject.config
    assert subject.scheme is not None
    curves(None, expected, extent.chart)
    laws = tables.laws(by_class(expected_tensors(config, subject.scheme)), tied=config.tied)
    _print_weights(laws, extent)
    if extent.details:
        for table in tables.depth(expected, None, config.n_embd, min(out.width, _WIDTH)):
            out.print(table)


@dataclass(frozen=True)
class Extent:
    """How much of a page is printed.

    Attributes:
        details: every table, or the chart and the weights by class only.
        full: every tensor as well.
        findings: verdicts that were printed as findings, which leave the chart less room.
    """

    details: bool
    full: bool = False
    findings: int = 0

    @property
    def low(self) -> bool:
        """Whether the first page would push its answer off the screen."""
        out = console.stdout()
        return not self.details and out.is_terminal and out.height < _PAGE

    @property
    def chart(self) -> int:
        """Rows of the chart."""
        return 12 if self.details else 8 - min(3, self.findings) - self.low


def measured(
    found: Inspection,
    expected: Signals | None,
    *,
    n_embd: int,
    vocab_size: int,
    tied: bool,
    n_tokens: int,
    extent: Extent,
) -> None:
    """Print chart and weights of a measurement, and with details the depth tables and the loss.

    Args:
        found: what was measured.
        expected: what theory expects beside it.
        n_embd: channels of the model.
        vocab_size: rows of its head; 0 if it has none.
        tied: whether that is the token embedding.
        n_tokens: how many tokens it was measured on.
        extent: how much of it to print.
    """
    from nanogpt_cli.init.tensor_stats import by_class

    out = console.stdout()
    classes = by_class(found.tensors)
    signals, width = found.signals, min(out.width, _WIDTH)
    curves(signals, expected, extent.chart)
    if classes:
        _print_weights(tables.parameters(classes, tied=tied, width=width), extent)
    if not extent.details:
        return
    if extent.full and classes:
        out.print(tables.every_tensor(found.tensors, out.width))
    for table in tables.depth(signals, expected, n_embd, width):
        out.print(table)
    for table in tables.histograms(found.histograms):
        out.print(table)
    rows = {"measured": signals, **({"expected": expected} if expected else {})}
    if vocab_size:
        out.print(tables.loss(rows, vocab_size, n_tokens))


def _print_weights(table: Table, extent: Extent) -> None:
    """Print the table of weights, on the first page without blank lines around it."""
    table.show_edge = extent.details
    if not extent.low:
        console.stdout().print(table)
    if not extent.details:
        text = "Tables by depth, of gradients and of the loss: add --details"
        if extent.low:
            text = "Tables of weights, by depth, of gradients and of the loss: add --details"
        console.stdout().print(console.styled((text, "dim")))


def as_json(
    subject: Subject,
    expected: Signals | None,
    found: Inspection | None,
    verdicts: list[Verdict],
    training: list[float],
) -> dict[str, Any]:
    """The whole inspection as plain values for ``--json``."""
    from nanogpt_cli.model.accounting import account

    scheme = subject.scheme
    return {
        "model": subject.config.to_dict(),
        "scheme": None if scheme is None else {"name": scheme.name, "formula": scheme.formula},
        "size": asdict(account(subject.config)),
        "expected": expected.to_dict() if expected else None,
        "measured": found.signals.to_dict() if found else None,
        "dropout_factors": training,
        "weights": [tensor_row(t) for t in found.tensors] if found else [],
        "verdicts": [asdict(v) for v in verdicts],
    }


def tensor_row(t: Any) -> dict[str, Any]:
    """Statistics of a matrix as plain values."""
    keys = ("key", "tensor_class", "layer", "mean", "std", "minimum", "maximum", "expected_std")
    more = ("z", "ks", "kurtosis")
    law = None if t.law is None else str(t.law)
    values = {key: getattr(t, key) for key in (*keys, *more)}
    return {**values, "shape": list(t.shape), "law": law, "ok": t.follows}
