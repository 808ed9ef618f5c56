"""Files and the dashboard that ``nanogpt init-inspect`` makes of what it found."""

from __future__ import annotations

import csv
import importlib.util
import io
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
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
    from nanogpt_cli.init.inspect import Inspection
    from nanogpt_cli.init.lint import Verdict
    from nanogpt_cli.init.signals import Signals

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


@dataclass(frozen=True)
class Files:
    """Files to write, and whether to open the dashboard."""

    csv: Path | None
    png: Path | None
    svg: Path | None
    tui: bool

    def check(self) -> None:
        """Refuse what could not be drawn, before anything is computed."""
        if self.tui:
            from nanogpt_cli.tui import terminal

            if reason := terminal.why_not():
                raise UserError(f"--tui opens no dashboard: {reason}", "leave it out")
        for path in (self.png, self.svg):
            if path:
                _check_picture(path)


@dataclass(frozen=True)
class About:
    """The model that was inspected, as pictures and the dashboard name it."""

    label: str
    title: str
    parameters: int
    vocab_size: int
    n_layer: int


def write(
    wanted: Files,
    about: About,
    expected: Signals | None,
    found: Inspection | None,
    verdicts: Sequence[Verdict],
) -> None:
    """Write the files, and open the dashboard."""
    signals = found.signals if found else None
    if wanted.csv:
        _write_csv(wanted.csv, expected, found)
        console.say(f"wrote {wanted.csv}")
    for path in (wanted.png, wanted.svg):
        if path:
            _draw_picture(path, about.title, signals, expected, verdicts)
            console.say(f"wrote {path}")
    if wanted.tui:
        _open_dashboard(about, signals, expected)


def _write_csv(path: Path, expected: Signals | None, found: Inspection | None) -> None:
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


def _check_picture(path: Path) -> str:
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


def _draw_picture(
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
    buffer, kind = io.BytesIO(), _check_picture(path)
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


def _open_dashboard(about: About, measured: Signals | None, expected: Signals | None) -> None:
    """Open the dashboard's Layers page on the inspection, in a temporary run folder."""
    from nanogpt_cli.tui.app import Dashboard
    from nanogpt_cli.tui.session import RunSession

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "init-inspect"
        write_run(run, about, measured, expected)
        Dashboard([RunSession(run)], readonly=True, page="layers").run()


def write_run(
    folder: Path, about: About, measured: Signals | None, expected: Signals | None
) -> None:
    """Write a run folder whose log contains the inspection as step 0."""
    from nanogpt_cli.init.expected import statistics

    shown = measured or expected
    assert shown is not None
    folder.mkdir(parents=True)
    writer = EventWriter(RunFolder(folder).events)
    writer(
        events.RunStarted(
            name=about.label,
            parameters=about.parameters,
            vocab_size=about.vocab_size,
            n_layer=about.n_layer,
            expected=statistics(expected) if expected else {},
        )
    )
    writer(events.Layers(step=0, stats=statistics(shown)))
    writer(events.RunEnded(step=0, reason="finished"))
    writer.close()
