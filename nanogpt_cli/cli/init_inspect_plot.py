"""Pictures of an inspection for papers and pages; needs matplotlib, the extra ``[plot]``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import printable

if TYPE_CHECKING:
    from nanogpt_cli.init.signals import Signals

_PANELS = (
    ("Residual stream (RMS)", ("stream_rms",), True),
    ("Branches (RMS)", ("attn_rms", "mlp_rms"), True),
    ("Gradient of the stream (RMS)", ("grad_rms",), True),
    ("Cosine between positions", ("cosine",), False),
)
_NAMES = {"stream_rms": "stream", "attn_rms": "attention", "mlp_rms": "MLP", "grad_rms": "gradient"}
_COLOURS = ("#0072B2", "#D55E00")  # Okabe & Ito: distinct for colour-blind readers


def check(path: Path) -> str:
    """The kind of picture ``path`` asks for, before anything is computed for it.

    Raises:
        UserError: matplotlib is not installed, or it is no kind of picture.
    """
    from importlib.util import find_spec

    kind = path.suffix.lstrip(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise UserError(f"{path}: pictures are .png, .svg or .pdf")
    if find_spec("matplotlib") is None:
        hint = "pip install 'nanogpt-cli[plot]', or use --csv"
        raise UserError("pictures need matplotlib", hint)
    return kind


def draw(path: Path, title: str, measured: Signals | None, expected: Signals | None) -> None:
    """Four panels over depth, measured as points and expected as lines.

    The same numbers give the same bytes, so a committed picture changes only with its content.
    """
    import io

    import matplotlib
    from matplotlib.figure import Figure

    from nanogpt_cli import files

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    figure.suptitle(printable(title), parse_math=False)  # a label may hold anything
    for axes, (heading, names, log) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel("block")
        axes.grid(alpha=0.25)
        for name, colour in zip(names, _COLOURS, strict=False):
            _panel(axes, name, colour, measured, expected)
        if log and axes.lines:
            _log_axis(axes)
        if axes.lines:
            axes.legend(fontsize=8, frameon=False)
    buffer, kind = io.BytesIO(), check(path)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        still = {"metadata": {"Date": None}} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, dpi=150, **still)
    files.write_bytes(path, buffer.getvalue())


def _log_axis(axes: Any) -> None:
    """A logarithmic axis labelled with plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    # Within less than two decades the powers of ten alone would be too few.
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
        axes.plot(x, values, style, color=colour, label=f"{_NAMES.get(name, name)}, {label}")
