"""Output of ``nanogpt init-inspect``: printed sections, JSON, CSV, pictures, the dashboard."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli import files
from nanogpt_cli.cli import console
from nanogpt_cli.cli import init_inspect_tables as tables
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import printable
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.log import EventWriter

if TYPE_CHECKING:
    from nanogpt_cli.cli.init_inspect_input import Subject
    from nanogpt_cli.init.inspect import Inspection
    from nanogpt_cli.init.lint import Verdict
    from nanogpt_cli.init.signals import Signals

_WIDTH = 100
_PANELS = (
    ("Residual stream (RMS)", ("stream_rms",), True),
    ("Branches (RMS)", ("attn_rms", "mlp_rms"), True),
    ("Gradient of the stream (RMS)", ("grad_rms",), True),
    ("Cosine between positions", ("cosine",), False),
)
_LABELS = {
    "stream_rms": "stream",
    "attn_rms": "attention",
    "mlp_rms": "MLP",
    "grad_rms": "gradient",
}
_COLOURS = ("#0072B2", "#D55E00")  # Okabe & Ito: distinct for colour-blind readers


def header(subject: Subject, tokens: str, seed: int, training: list[float]) -> None:
    """Print configuration, scheme and sizes; ``training``: see ``dropout_factors``."""
    from rich.table import Table

    from nanogpt_cli.model.accounting import account

    c, scheme, sizes = subject.config, subject.scheme, account(subject.config)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    bias, tied = "biases" if c.bias else "no biases", "tied head" if c.tied else "untied head"
    grid.add_row(
        "model",
        console.styled(
            (subject.label, "bold cyan"),
            f": {c.n_layer} layers, {c.n_embd} channels, {c.n_head} heads, context {c.block_size}, "
            f"vocabulary {c.vocab_size}, {c.activation}, {bias}, {tied}",
        ),
    )
    if scheme is not None:
        grid.add_row("scheme", console.styled((scheme.name, "bold cyan"), f": {scheme.about}"))
        grid.add_row("", scheme.formula)
        factors = "; ".join(f"{k} {v}" for k, v in scheme.multipliers.items())
        rate, eps, decay = (f.get("fc", "1") for f in (scheme.lr, scheme.eps, scheme.decay))
        if factors or scheme.lr:
            text = f"multipliers: {factors or 'none'}; learning rate of matrices × {rate}"
            more = ((" their ε ×", eps), (" their weight decay ×", decay))
            grid.add_row("", "".join([text, *(f",{k} {v}" for k, v in more if v != "1")]))
        grid.add_row("", console.styled((scheme.source, "dim")))
    n = console.count
    grid.add_row(
        "size",
        f"{n(sizes.parameters)} parameters, {n(sizes.non_embedding)} without tables; "
        f"weight decay on {n(sizes.decayed)}",
    )
    flops = f"{n(sizes.flops_training)} FLOPs a token to train (6N + 12LdT), "
    grid.add_row("work", f"{flops}{n(sizes.flops_forward)} forward (exact)")
    parts = ", ".join(f"{name} {_bytes(size)}" for name, size in sizes.memory.items())
    total = _bytes(sum(sizes.memory.values()))
    grid.add_row("memory", f"{total} to train in float32, one sequence at a time: {parts}")
    grid.add_row("input", f"{tokens}, seed {seed}")
    if c.dropout:
        text = f"evaluation, with dropout off; training drops {c.dropout:g}"
        if training:
            text += f", which makes the stream's RMS {training[0]:.3f} times as large at the "
            text += f"embedding and {training[-1]:.3f} times after the last block (theory)"
        grid.add_row("mode", text)
    for note in subject.notes:
        grid.add_row("note", console.styled((note, "yellow")))
    console.stdout().print(grid)


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


def curves(measured: Signals | None, expected: Signals | None) -> None:
    """Print the chart over depth with its legend."""
    out = console.stdout()
    legend: list[str | tuple[str, str]] = [("stream RMS", "cyan")]
    if (measured or expected) and (measured or expected).grad_rms:  # type: ignore[union-attr]
        legend += [", ", ("gradient RMS", "magenta"), " (scaled: shape only)"]
    if measured and expected:
        legend += ["; ", ("grey: expected", "bright_black")]
    out.print(console.styled("\n", ("Over depth", "bold"), "  ", *legend))
    out.print(tables.picture(measured, expected, min(out.width, _WIDTH) - 2, 12), end="")


def declared(subject: Subject, expected: Signals) -> None:
    """Print the declared laws and expected tables in place of a measurement, for ``--theory``."""
    from nanogpt_cli.init.expected import expected_tensors
    from nanogpt_cli.init.tensor_stats import by_class

    out, config = console.stdout(), subject.config
    assert subject.scheme is not None
    out.print()
    out.print(tables.laws(by_class(expected_tensors(config, subject.scheme)), tied=config.tied))
    curves(None, expected)
    out.print()
    for table in tables.depth(expected, None, config.n_embd, min(out.width, _WIDTH)):
        out.print(table)


def measured(
    subject: Subject,
    found: Inspection,
    expected: Signals | None,
    *,
    n_tokens: int,
    full: bool,
) -> None:
    """Print weights, depth tables and loss of a measurement."""
    from nanogpt_cli.init.tensor_stats import by_class

    out = console.stdout()
    classes = by_class(found.tensors)
    signals, width = found.signals, min(out.width, _WIDTH)
    out.print()
    out.print(tables.parameters(classes, tied=subject.config.tied, width=width))
    if full:
        out.print(tables.every_tensor(found.tensors, out.width))
    curves(signals, expected)
    out.print()
    for table in tables.depth(signals, expected, subject.config.n_embd, width):
        out.print(table)
    for table in tables.histograms(found.histograms):
        out.print(table)
    rows = {"measured": signals, **({"expected": expected} if expected else {})}
    out.print(tables.loss(rows, subject.config.vocab_size, n_tokens))


def judge(found: list[Verdict]) -> None:
    """Print the verdicts."""
    console.stdout().print(tables.verdicts(found))


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
        "weights": [_row(t) for t in found.tensors] if found else [],
        "verdicts": [asdict(v) for v in verdicts],
    }


def _row(t: Any) -> dict[str, Any]:
    keys = ("key", "tensor_class", "layer", "mean", "std", "minimum", "maximum", "expected_std")
    more = ("z", "ks", "kurtosis")
    law = None if t.law is None else str(t.law)
    values = {key: getattr(t, key) for key in (*keys, *more)}
    return {**values, "shape": list(t.shape), "law": law, "ok": t.follows}


def write_csv(path: Path, expected: Signals | None, found: Inspection | None) -> None:
    """Write one line per block (0 is the embedding) with measured and expected columns."""
    columns: dict[str, list[float]] = {}
    for label, signals in (("measured", found and found.signals), ("expected", expected)):
        if not signals:
            continue
        for name, values in signals.to_dict().items():
            for key, row in _series(name, values):
                columns[f"{key}_{label}"] = row
    length = max(map(len, columns.values()))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["block", *columns])
    for i in range(length):
        cells = [row[i - length] if i >= length - len(row) else "" for row in columns.values()]
        writer.writerow([i, *cells])
    files.write_text(path, out.getvalue())


def _series(name: str, values: Any) -> list[tuple[str, list[float]]]:
    if isinstance(values, dict):
        return [(f"weight_grad_{key}", row) for key, row in values.items() if row]
    return [(name, values)] if isinstance(values, list) and values else []


def check_picture(path: Path) -> str:
    """The picture format that the suffix of ``path`` names, checked before anything is computed.

    Raises:
        UserError: matplotlib is not installed, or the suffix names no picture format.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise UserError(f"{path}: pictures are .png, .svg or .pdf")
    if importlib.util.find_spec("matplotlib") is None:
        hint = "pip install 'nanogpt-cli[plot]', or use --csv"
        raise UserError("pictures need matplotlib", hint)
    return kind


def draw_picture(
    path: Path,
    title: str,
    measured: Signals | None,
    expected: Signals | None,
    found: Sequence[Verdict],
) -> None:
    """Draw four panels over depth, with measured values as points and expected ones as lines.

    The verdicts stand below. The same numbers give the same bytes, so a committed picture changes
    only with its content.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    said = [piece for v in tables.by_severity(found) for piece in _verdict_lines(v)]
    figure = Figure(figsize=(10, 6.4 + 0.18 * len(said)), layout="constrained")
    figure.suptitle(printable(title), parse_math=False)  # a label may contain any characters
    figure.supxlabel(
        "\n".join(said), x=0.02, ha="left", fontsize=9, family="monospace", parse_math=False
    )
    for axes, (heading, names, log) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel("block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        for name, colour in zip(names, _COLOURS, strict=False):
            _panel(axes, name, colour, measured, expected)
        if log and axes.lines:
            _log_axis(axes)
        if axes.lines:
            axes.legend(fontsize=8, frameon=False)
    buffer, kind = io.BytesIO(), check_picture(path)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        still = {"metadata": {"Date": None}} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, dpi=150, **still)
    files.write_bytes(path, buffer.getvalue())


def _verdict_lines(verdict: Verdict) -> list[str]:
    """A verdict after its mark, wrapped to the width of the picture."""
    mark = tables.MARKS[verdict.severity]
    lines = textwrap.wrap(printable(verdict.text), 120)
    return [f"{mark} {line}" if n == 0 else f"  {line}" for n, line in enumerate(lines)]


def _log_axis(axes: Any) -> None:
    """A logarithmic axis labelled with plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    # For less than two decades, powers of ten alone would give too few labels.
    steps = range(2, 10) if high < 3 * low else (2, 3, 5) if high < 100 * low else ()
    axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if int(f"{y:e}"[0]) in steps else "")


def _panel(
    axes: Any, name: str, colour: str, measured: Signals | None, expected: Signals | None
) -> None:
    for signals, style, label in ((expected, "-", "expected"), (measured, ".", "measured")):
        values = [] if signals is None else getattr(signals, name)
        if not values or max(values) <= 0:
            continue
        first = 0 if name in ("stream_rms", "grad_rms", "cosine") else 1
        x = range(first, first + len(values))
        axes.plot(x, values, style, color=colour, label=f"{_LABELS.get(name, name)}, {label}")


def open_dashboard(subject: Subject, measured: Signals | None, expected: Signals | None) -> None:
    """Open the dashboard's Layers page on the inspection, in a temporary run folder."""
    from nanogpt_cli.tui.app import Dashboard
    from nanogpt_cli.tui.session import RunSession

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "init-inspect"
        write_run(run, subject, measured, expected)
        Dashboard([RunSession(run)], readonly=True, page="layers").run()


def write_run(
    folder: Path, subject: Subject, measured: Signals | None, expected: Signals | None
) -> None:
    """Write a run folder whose log contains the inspection as step 0."""
    from nanogpt_cli.init.expected import statistics
    from nanogpt_cli.model.accounting import account

    shown = measured or expected
    assert shown is not None
    folder.mkdir(parents=True)
    writer = EventWriter(RunFolder(folder).events)
    writer(
        events.RunStarted(
            name=subject.label,
            parameters=account(subject.config).parameters,
            vocab_size=subject.config.vocab_size,
            n_layer=subject.config.n_layer,
            expected=statistics(expected) if expected else {},
        )
    )
    writer(events.Layers(step=0, stats=statistics(shown)))
    writer(events.RunEnded(step=0, reason="finished"))
    writer.close()
