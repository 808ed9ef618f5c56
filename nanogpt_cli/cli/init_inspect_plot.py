"""Pictures of an inspection for papers and pages; needs matplotlib, the extra ``[plot]``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.core.signals import Signals

_PANELS = (
    ("Residual stream (RMS)", ("stream_rms",), True),
    ("Branches (RMS)", ("attn_rms", "mlp_rms"), True),
    ("Gradient of the stream (RMS)", ("grad_rms",), True),
    ("Cosine between positions", ("cosine",), False),
)
_NAMES = {"stream_rms": "stream", "attn_rms": "attention", "mlp_rms": "MLP", "grad_rms": "gradient"}
_COLOURS = ("#0072B2", "#D55E00")  # Okabe & Ito: distinct for colour-blind readers


def draw(path: Path, title: str, measured: Signals | None, expected: Signals | None) -> None:
    """Four panels over depth, measured as points and expected as lines, as PNG or SVG.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "pictures need matplotlib", "pip install 'nanogpt-cli[plot]', or use --csv"
        ) from None
    import io

    from nanogpt_cli import files

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    figure.suptitle(title)
    for axes, (heading, names, log) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel("block")
        axes.grid(alpha=0.25)
        for name, colour in zip(names, _COLOURS, strict=False):
            _panel(axes, name, colour, measured, expected)
        if log and axes.lines:
            axes.set_yscale("log")
        if axes.lines:
            axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    kind = path.suffix.lstrip(".").lower() or "png"
    if kind not in ("png", "svg", "pdf"):
        raise UserError(f"{path}: pictures are .png, .svg or .pdf")
    figure.savefig(buffer, format=kind, dpi=150)
    files.write_bytes(path, buffer.getvalue())


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
