"""The tables and charts of ``nanogpt init-inspect``, as Rich renderables."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanogpt_cli.cli import console
from nanogpt_cli.printable import draws

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from nanogpt_cli.init.probes import Histogram
    from nanogpt_cli.init.signals import Signals
    from nanogpt_cli.init.tensor_stats import ClassStats, TensorStats

ROWS = 13  # a table shows every block of GPT-2 small, and a selection for deeper models
_PAIR = 17  # terminal cells for a measured and an expected number
_NAME = 12
# Narrower terminals get neither the law, which the scheme's formula gives, nor the largest value.
_LAW_FROM, _EXTREME_FROM = 100, 70
_PLOT_STYLES = {"stream": "cyan", "grad": "magenta", "theory": "bright_black", "axis": "dim"}


def number(x: float) -> str:
    """Three significant digits in short form: 0.0283, 3.04, 122, 2.7e-05; – for NaN."""
    if math.isnan(x):
        return "–"
    if x == 0:
        return "0"
    if not 1e-3 <= abs(x) < 1e5:
        return f"{x:.2e}".replace("e-0", "e-").replace("e+0", "e")
    digits = max(0, 2 - math.floor(math.log10(abs(x))))
    return f"{x:.{digits}f}"


def beside(
    measured: float, expected: float, *, room: float = 1.0, digits: int | None = None
) -> tuple[Text, Text]:
    """A measured number, coloured if it deviates from the expected one, and the latter, dimmed.

    It is yellow from 5 % and red from 10 % deviation, times ``room``.
    """
    from rich.text import Text

    style = ""
    if expected and math.isfinite(expected) and math.isfinite(measured):
        off = abs(measured / expected - 1) / room
        style = "red" if off > 0.10 else "yellow" if off > 0.05 else ""
    if digits is None:
        return Text(number(measured), style), Text(number(expected), "dim")
    a, b = ("–" if math.isnan(x) else f"{round(x, digits) + 0.0:.{digits}f}"
            for x in (measured, expected))  # fmt: skip
    return Text(a, style), Text(b, "dim")


def parameters(classes: Sequence[ClassStats], *, tied: bool, width: int) -> Table:
    """One row per tensor class: law, expected and measured std, range, verdict."""
    declared = classes[0].tensors[0].law is not None
    title = "Weights by class" + (", measured beside their law" if declared else "")
    table = _weights_table(title, "n", width, declared=declared)
    for c in classes:
        name = "wte = head" if c.tensor_class == "wte" and tied else c.tensor_class
        table.add_row(name, console.count(c.size), *_measured(c, width))
    return table


def laws(classes: Sequence[ClassStats], *, tied: bool) -> Table:
    """One row per tensor class without measurement: law, expected std and largest value."""
    heads = ("", "n", "law (block 1)", "std (all)", "largest")
    table = console.simple_table("Weights by class, as declared", heads)
    table.columns[2].justify = "left"
    for c in classes:
        name = "wte = head" if c.tensor_class == "wte" and tied else c.tensor_class
        cells = (str(c.tensors[0].law), number(c.expected_std), number(c.expected_extreme))
        table.add_row(name, console.count(c.size), *cells)
    return table


def every_tensor(tensors: Sequence[TensorStats], width: int) -> Table:
    """One row per tensor."""
    from nanogpt_cli.init.tensor_stats import ClassStats

    width -= _NAME  # names of tensors are longer than those of classes
    declared = tensors[0].law is not None
    table = _weights_table("Every tensor", "shape", width, declared=declared)
    for t in tensors:
        shape = "×".join(str(n) for n in t.shape if n > 1) or "1"
        one = ClassStats(t.tensor_class, (t,))
        name = t.key.removeprefix("transformer.").replace(".weight", "")
        table.add_row(name, shape, *_measured(one, width))
    return table


def _weights_table(title: str, size: str, width: int, *, declared: bool) -> Table:
    if not declared:
        heads = ("", size, "looks like (block 1)", "std", "kurtosis", "min", "max")
        table = console.simple_table(title, heads)
        table.columns[2].justify = "left"
        return table
    law = ("law (block 1)",) if width >= _LAW_FROM else ()
    extreme = ("exp. ±",) if width >= _EXTREME_FROM else ()
    heads = ("", size, *law, "std", "exp.", "z", "min", "max", *extreme, "")
    table = console.simple_table(title, heads)
    if law:
        table.columns[2].justify = "left"
    return table


def _measured(c: ClassStats, width: int) -> tuple[RenderableType, ...]:
    from nanogpt_cli.init.detect import guess_law

    law = c.tensors[0].law
    extreme = c.expected_extreme
    verdict = console.styled(("off", "red") if c.off else ("✓", "green"))
    z = f"{c.z:+.1f}" if math.isfinite(c.z) else "–"
    std = f"{c.std:.5f}" if c.std else "0"
    expected = "–" if math.isnan(c.expected_std) else f"{c.expected_std:.5f}"
    cells = (std, console.styled((expected if c.expected_std else "0", "dim")), z)
    far = (console.styled((number(extreme), "dim")),) if width >= _EXTREME_FROM else ()
    span = (number(c.minimum), number(c.maximum), *far, verdict)
    if law is None:  # weights of unknown origin: a law is inferred from the values
        name = guess_law(c.tensors[0], max(t.layer for t in c.tensors) + 1 or 1)
        return name, std, z.replace("–", number(c.tensors[0].kurtosis)), *span[:2]
    shown = (str(law),) if width >= _LAW_FROM else ()
    return *shown, *cells, *span


@dataclass(frozen=True)
class Column:
    """One quantity over depth.

    Attributes:
        name: heading of the column.
        measured, expected: one value per row; ``expected`` may be empty.
        room: factor on the tolerance for colours; infinite for no colour.
        digits: number of decimals, or ``None`` for three significant digits.
    """

    name: str
    measured: Sequence[float]
    expected: Sequence[float]
    room: float = math.inf
    digits: int | None = None

    def cells(self, i: int) -> list[Text]:
        """Cells of row ``i``."""
        found = list(beside(self.measured[i], self.value(i), room=self.room, digits=self.digits))
        return found if len(self.expected) else found[:1]

    def value(self, i: int) -> float:
        """Expected value of row ``i``."""
        return self.expected[i] if len(self.expected) else math.nan


def _depth_tables(
    title: str, columns: Sequence[Column], rows: dict[int, str], width: int
) -> list[Table]:
    """As many tables as needed to stay within ``width``; ``rows`` are names by index."""
    columns = [c for c in columns if len(c.measured)]
    if not columns:
        return []
    most = max(1, (width - 7) // _PAIR)
    parts = -(-len(columns) // most)
    size = -(-len(columns) // parts)
    tables = []
    for first in range(0, len(columns), size):
        part = columns[first : first + size]
        heads = [h for c in part for h in ([c.name, "exp."] if len(c.expected) else [c.name])]
        table = console.simple_table(title if first == 0 else "", ["block", *heads])
        for i, name in rows.items():
            table.add_row(name, *(cell for c in part for cell in c.cells(i)))
        tables.append(table)
    return tables


def depth(measured: Signals, expected: Signals | None, n_embd: int, width: int) -> list[Table]:
    """Tables over depth: residual stream and branches, attention and activations, gradients."""
    from nanogpt_cli.init.signals import Signals, grid

    e = expected or Signals()
    room = max(1.0, math.sqrt(256 / n_embd))  # theory is the limit of infinite width
    blocks = {i: str(i) for i in grid(len(measured.stream_rms), ROWS) if i}
    rows = {0: "embed", **blocks}

    def pad(values: Sequence[float]) -> list[float]:
        return [math.nan, *values] if len(values) else []

    stream = [
        Column("stream", measured.stream_rms, e.stream_rms, room),
        Column("attention", pad(measured.attn_rms), pad(e.attn_rms)),
        Column("MLP", pad(measured.mlp_rms), pad(e.mlp_rms), room),
        Column("cosine", measured.cosine, e.cosine, digits=3),
    ]
    inner = [
        Column("score std", pad(measured.score_std), pad(e.score_std)),
        Column("entropy", pad(measured.attn_entropy), pad(e.attn_entropy), digits=3),
        Column("pre-act", pad(measured.preact_std), pad(e.preact_std), room),
        Column("dead", pad(measured.near_zero), pad(e.near_zero), digits=2),
    ]
    heads = {"c_attn": "∂qkv", "attn_proj": "∂proj", "fc": "∂fc", "mlp_proj": "∂mlp"}
    gradients = [Column("∂stream", measured.grad_rms, e.grad_rms, room)]
    for key, head in heads.items():
        norms = pad(measured.weight_grad.get(key, []))
        gradients.append(Column(head, norms, pad(e.weight_grad.get(key, []))))
    return [
        *_depth_tables("Residual stream and branches (RMS)", stream, rows, width),
        *_depth_tables("Inside the blocks", inner, blocks, width),
        *_depth_tables("Gradients: stream (RMS), matrices (norm)", gradients, rows, width),
    ]


def picture(measured: Signals | None, expected: Signals | None, width: int, height: int) -> Text:
    """A braille chart of residual stream and gradient over depth; expected curves are grey."""
    import numpy as np
    from rich.text import Text

    from nanogpt_cli.tui.drawing.plot import PlotOptions, Trace, plot

    shown = measured or expected
    assert shown is not None
    x = np.arange(len(shown.stream_rms), dtype=np.float64)
    traces = []
    for name in ("stream", "grad"):
        for signals, colour, kind in ((expected, "theory", "dash"), (measured, name, "line")):
            values = [] if signals is None else getattr(signals, f"{name}_rms")
            colour = name if measured is None else colour
            if len(values) and max(values) > 0:
                scale = (
                    1.0
                    if name == "stream"
                    else shown.stream_rms[0] / max(shown.grad_rms[-1], 1e-300)
                )
                traces.append(Trace(name, x, np.asarray(values) * scale, colour, kind))
    plain = not draws(sys.stdout)
    options = PlotOptions(log_y=True, x_axis="block", ascii_only=plain)
    drawn = plot(traces, (0.0, max(1.0, x[-1])), width, height, options)
    text = Text()
    for row in drawn.rows:
        for piece, key in row:
            text.append(piece, _PLOT_STYLES.get(key, ""))
        text.append("\n")
    return text


def sparkline(values: Sequence[float], width: int = 48) -> str:
    """A row of bars, scaled from the smallest to the largest value."""
    import numpy as np

    from nanogpt_cli.tui.drawing import draw

    plain = not draws(sys.stdout)
    row = np.asarray(values, dtype=np.float64)
    return draw.sparkline(row, min(width, len(values)), ascii_only=plain)


def histograms(found: dict[str, list[Histogram]]) -> list[Table]:
    """Histograms of pre-activations and residual stream, as a row of bars per layer."""
    from nanogpt_cli.init.signals import grid

    titles = {
        "preact": "Pre-activations over their RMS, -4 … 4",
        "resid": "Stream after the block over its RMS, -4 … 4",
    }
    tables = []
    for name, layers in found.items():
        table = console.simple_table(titles[name], ("block", "RMS", "distribution"))
        for i in grid(len(layers), ROWS):
            h = layers[i]
            table.add_row(str(i + 1), number(h.rms), sparkline(h.counts, len(h.counts)))
        tables.append(table)
    return tables


def loss(rows: dict[str, Signals], vocab_size: int, n_tokens: int) -> Table:
    """Loss compared with ln V, measured and (before the first step) expected, and logits.

    ± is the standard error from drawing ``n_tokens`` random targets; the loss over all targets has
    no such error.
    """
    heads = ("", "loss", "±", "all targets", "ln V", "above it", "logit std", "own logit")
    title = "Loss before the first step" if "expected" in rows else "Loss on these tokens"
    table = console.simple_table(title, heads)
    log_v = math.log(vocab_size)
    for name, s in rows.items():
        noise = f"{s.logit_std / math.sqrt(n_tokens):.3f}" if name == "measured" else ""
        values = (f"{s.loss:.3f}", noise, f"{s.loss_any:.3f}", f"{log_v:.3f}")
        style = "" if name == "measured" else "dim"
        more = (f"{s.loss_any - log_v:+.3f}", f"{s.logit_std:.3f}", f"{s.own_logit:.2f}")
        table.add_row(name, *values, *more, style=style)
    return table
