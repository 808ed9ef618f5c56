"""Panes that are neither chart nor page: heat map, wrapped text, sparkline strip, plain rows."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, chop_cells, set_cell_size

from nanogpt_cli import printable as harmless
from nanogpt_cli import units
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.drawing import heat, traces
from nanogpt_cli.tui.drawing.draw import sparkline
from nanogpt_cli.tui.drawing.plot import Row, Trace
from nanogpt_cli.tui.state.series import Floats
from nanogpt_cli.tui.state.view import RunView
from nanogpt_cli.tui.widgets.charts import bounds
from nanogpt_cli.tui.widgets.rows import RowsWidget

_LEAST = 12  # cells of a shortened column


class Pane(RowsWidget, can_focus=True):
    """A bordered pane of rows that can be focused, maximised and exported."""

    DEFAULT_CSS = """
    Pane { border: round $foreground 25%; border-title-color: $text;
           border-subtitle-color: $text-muted; }
    Pane:focus { border: round $accent; }
    """

    @property
    def chosen(self) -> int | None:
        """The line of a list that is chosen; ``None`` in a pane that is no list."""
        marked = (n for n, row in enumerate(self._rows) if any(k == "select" for _, k in row))
        return next(marked, None)

    @property
    def count(self) -> int:
        """How many lines there are."""
        return len(self._rows)

    def empty(self, text: str, title: str = "") -> None:
        """Show a dimmed text that explains why there is nothing to see."""
        width, height = self.size.width, self.size.height
        lines = wrap(text, max(10, width - 2))
        top: list[Row] = [[] for _ in range(max(0, (height - len(lines)) // 2))]
        self.set_rows([*top, *([(line.center(width), "dim")] for line in lines)])
        if title:
            self.set_title(title)

    def csv(self) -> str:
        """The shown text."""
        return self.text() + "\n"


def wrap(text: str, width: int) -> list[str]:
    """Wrap text to ``width`` cells, at spaces where possible; line breaks are kept."""
    lines: list[str] = []
    for line in printable(text).split("\n"):
        current = ""
        for word in line.split(" "):
            candidate = f"{current} {word}" if current else word
            if cell_len(candidate) <= width:
                current = candidate
                continue
            if current:
                lines.append(current)
            chunks = chop_cells(word, width) if word else [""]
            lines += chunks[:-1]
            current = chunks[-1] if chunks else ""
        lines.append(current)
    return lines


def printable(text: str) -> str:
    """Escape control characters, of which a model may write any, and expand tabs to four spaces."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    return harmless.printable(text, "\n")


class HeatPane(Pane):
    """Heat map of the desk's statistic over layers and time."""

    def draw(self, desk: Desk, *, selected: int | None = None) -> None:
        """Draw the statistic over the shared window."""
        view, stat = desk.view, heat.statistic(desk.statistic)
        title = f"{stat.label} ─ layers × time"
        values = view.layers.values(desk.statistic)
        if not len(values):
            said = "statistics are off" if _stats_off(view) else "waiting for layer statistics"
            self.empty(said, title)
            return
        steps = sample_axis(view, desk.window.axis, desk.statistic)
        full = bounds([Trace("", view.steps[desk.window.axis], steps, "")])
        picture = heat.heat_map(
            stat, steps, values, desk.window.range(full), self.size.width, self.size.height,
            log_x=desk.window.log, colors=desk.color_map, ramp=desk.ramp,
            normalise=desk.normalise, cursor=desk.window.cursor, selected=selected,
        )  # fmt: skip
        self.set_rows(picture.rows)
        note = _heat_note(view, picture, desk, self.size.width - 4)
        self.set_title(title + _scale_note(stat, desk, picture), note)


def sample_axis(view: RunView, axis: str, name: str) -> Floats:
    """The x values of a statistic's samples."""
    import numpy as np

    steps = view.layers.steps(name)
    if axis == "step" or not len(view.steps):
        return steps
    return np.interp(steps, view.steps["step"], view.steps[axis])


def _stats_off(view: RunView) -> bool:
    recipe = view.started.recipe if view.started else {}
    stats = recipe.get("stats") if isinstance(recipe, dict) else None
    return isinstance(stats, dict) and stats.get("budget") == 0


def _scale_note(stat: heat.Statistic, desk: Desk, picture: heat.HeatMap) -> str:
    notes = []
    if stat.log and picture.ends[0] > 0:
        notes.append("log scale")
    if desk.normalise:
        notes.append("each layer against its median")
    if picture.pooled > 1:
        notes.append(f"most extreme of each {picture.pooled} layers")
    return " ─ " + " · ".join(notes) if notes else ""


def _heat_note(view: RunView, picture: heat.HeatMap, desk: Desk, width: int) -> str:
    """How often the statistics are measured and at what cost, and the colour scale."""
    bar = heat.color_bar(picture, desk.ramp)
    last = view.last_layers
    if last is None or not last.every:
        return bar
    often = f"measured every {last.every} steps"
    cost = f"{often}, which takes {units.percent(last.cost)} of the training time"
    shown = (f"{text}   {bar}" for text in (cost, often))
    return next((text for text in shown if len(text) <= width), bar)


class SparkStrip(RowsWidget):
    """One line of sparklines, for terminals without room for side charts."""

    DEFAULT_CSS = "SparkStrip { height: 1; }"

    def draw(self, desk: Desk) -> None:
        """Draw learning rate, gradient norm and tokens per second."""
        view, row = desk.view, []
        names = (("lr", "lr"), ("grad_norm", "grad"), ("tokens_per_s", "tok/s"))
        width = max(4, (self.size.width - 45) // 3)
        for metric, label in names:
            values = traces.trace(view, metric, "step", 0.9, metric, "train").y
            line = sparkline(values, width, ascii_only=desk.ascii_only)
            value = traces.latest(view, metric)
            row += [(f" {label} ", "dim"), (line, "train"), (f" {value:<8}", "text")]
        self.set_rows([row])


class SamplePane(Pane):
    """The newest text the model wrote."""

    def draw(self, desk: Desk) -> None:
        """Draw the prompt in a different colour, then the continuation."""
        samples = desk.view.samples
        if not samples:
            self.empty("no sample yet; g writes one from a prompt", "sample")
            return
        sample = samples[-1]
        self.set_rows(sample_rows(sample.prompt, sample.text, self.size.width, self.size.height))
        self.set_title(f"sample ─ step {sample.step:,}", f"temperature {sample.temperature:g}")


def sample_rows(prompt: str, text: str, width: int, height: int) -> list[Row]:
    """A wrapped sample with its prompt in a different colour."""
    lines = wrap(prompt + text, max(4, width - 2))
    left = len(printable(prompt))
    rows: list[Row] = []
    for line in lines[:height]:
        given = line[: max(0, min(left, len(line)))]
        left -= len(line) + 1
        rows.append([(" ", "plain"), (given, "prompt"), (line[len(given) :], "text")])
    if len(lines) > height and rows:
        rows[-1] = [*rows[-1][:-1], (rows[-1][-1][0][: width - 4] + " …", "dim")]
    return rows


def table(
    heads: Sequence[str],
    lines: Sequence[Sequence[str]],
    selected: int | None,
    width: int,
    *,
    name: int = -1,
) -> list[Row]:
    """Aligned columns under dim headings, with the selected line in reverse.

    What is too wide is shortened in the column ``name``: in its middle, or at its end if it is the
    last. If that is not enough, the last columns are left out.
    """
    name %= len(heads)
    lines = [[harmless.printable(cell, "") for cell in line] for line in lines]
    sizes = [max(cell_len(line[i]) for line in [heads, *lines]) for i in range(len(heads))]
    last = name == len(sizes) - 1

    room = width - 2 * len(sizes)
    while sum(sizes) - max(0, sizes[name] - _LEAST) > room and len(sizes) > name + 1:
        sizes.pop()
        room += 2
    sizes[name] = max(min(sizes[name], _LEAST), sizes[name] - max(0, sum(sizes) - room))

    def cell(text: str, column: int) -> str:
        room = sizes[column]
        if last and cell_len(text) > room:
            text = set_cell_size(text, max(0, room - 1)).rstrip() + "…"
        return set_cell_size(units.shortened(text, room, cell_len), room)

    def render(cells: Sequence[str]) -> str:
        joined = "  ".join(cell(text, column) for column, text in enumerate(cells[: len(sizes)]))
        return set_cell_size(f" {joined} ", width)

    rows: list[Row] = [[(render(heads).rstrip(), "dim")]]
    for index, line in enumerate(lines):
        rows.append([(render(line), "select" if index == selected else "text")])
    return rows
