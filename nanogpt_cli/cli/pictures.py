"""Pictures as files: SVG by our own code, PNG and PDF of the same figure by matplotlib."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

from nanogpt_cli import charts, files
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import printable

_MARKERS = {"line": "-", "dotted line": ".-", "dash": "--", "dots": "."}


def check(path: Path) -> str:
    """The format that the suffix of ``path`` names, checked before anything is computed.

    Raises:
        UserError: the suffix names no picture format, or matplotlib is needed and not installed.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise UserError(f"{path}: pictures are .png, .svg or .pdf")
    if kind != "svg" and importlib.util.find_spec("matplotlib") is None:
        hint = "pip install 'nanogpt-cli[plot]', or use --svg, which needs nothing"
        raise UserError(f".{kind} pictures need matplotlib", hint)
    return kind


def write(path: Path, figure: charts.Figure) -> None:
    """Write a figure in the format that the suffix of ``path`` names.

    Raises:
        UserError: as ``check``, or the file cannot be written.
    """
    kind = check(path)
    with files.readable_os_errors("write the picture", path):
        if kind == "svg":
            files.write_text(path, charts.svg(figure))
        else:
            files.write_bytes(path, _by_matplotlib(figure, kind))


def _by_matplotlib(figure: charts.Figure, kind: str) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = -(-len(figure.panels) // figure.columns)
    notes = [line for note in figure.notes for line in charts.wrapped(note, 900, 11)]
    size = (10, (3.1 if rows > 1 else 4.4) * rows + 0.2 * len(notes))
    page = Figure(figsize=size, layout="constrained")
    page.suptitle(printable(figure.title), parse_math=False)  # a label may hold any characters
    page.supxlabel("\n".join(map(printable, notes)), x=0.02, ha="left", fontsize=9,
                   parse_math=False)  # fmt: skip
    grid = page.subplots(rows, figure.columns, squeeze=False).flat
    for axes, panel in zip(grid, figure.panels, strict=False):
        axes.set_title(printable(panel.title), fontsize=10, parse_math=False)
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label)
        if panel.x_axis == "block":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        for mark in panel.marks:
            _mark(axes, mark)
        if any(mark.label for mark in panel.marks):
            outside: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3}
            axes.legend(fontsize=8, frameon=False, **({} if panel.title else outside))
        (x_range, y_range) = charts.bounds(panel)
        if panel.log_x:
            axes.set_xscale("log")
        if panel.log_y:
            axes.set_yscale("log")
        axes.set_xlim(*x_range)
        axes.set_ylim(*y_range)
        if panel.log_y:
            _plain_labels(axes)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        still = {"metadata": {"CreationDate": None}} if kind == "pdf" else {}
        page.savefig(buffer, format=kind, dpi=150, **still)
    return buffer.getvalue()


def _mark(axes: Any, mark: charts.Mark) -> None:
    colour = charts.COLOURS[mark.colour % len(charts.COLOURS)] if mark.colour >= 0 else "#777777"
    label = (
        f"\u2060{printable(mark.label)}" if mark.label.startswith("_") else printable(mark.label)
    )
    if mark.kind == "band":
        axes.fill_between(
            mark.x, mark.y, mark.high, color=colour, alpha=0.2, linewidth=0, label=label
        )
    else:
        axes.plot(mark.x, mark.y, _MARKERS[mark.kind], color=colour, label=label)


def _plain_labels(axes: Any) -> None:
    """Plain numbers at a logarithmic axis."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    # For less than two decades, powers of ten alone would give too few labels.
    steps = range(2, 10) if high < 3 * low else (2, 3, 5) if high < 100 * low else ()
    axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if int(f"{y:e}"[0]) in steps else "")
