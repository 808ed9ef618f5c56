"""Page 3: several runs in one chart, their best losses, and the differences of their recipes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widget import Widget

from nanogpt_cli import units
from nanogpt_cli.printable import printable
from nanogpt_cli.run.folder import RunFolder, list_runs
from nanogpt_cli.tui import palette, patterns, scalars, traces
from nanogpt_cli.tui.charts import LineChart
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.history import SMOOTHING
from nanogpt_cli.tui.page import Page
from nanogpt_cli.tui.panes import Pane, table
from nanogpt_cli.tui.plot import Row, Trace
from nanogpt_cli.tui.recipes import differing, short
from nanogpt_cli.tui.session import RunSession
from nanogpt_cli.tui.view import RunView

METRICS = ("loss", "val_loss", "grad_norm", "lr", "tokens_per_s")
MARKS = "●■▲◆▼★○"


class ComparePage(Page):
    """The opened runs and their neighbours in the same folder; enter adds or removes one."""

    def __init__(self, desk: Desk, id: str) -> None:
        super().__init__(desk, id)
        self.name_of_metric = "loss"
        self.selected = 0
        self.hidden: set[str] = set()

    def compose(self) -> ComposeResult:
        """Yield the chart above, runs and differences below."""
        yield LineChart("compare", id="overlay")
        with Horizontal(id="tables"):
            yield Pane(id="runs")
            yield Pane(id="diff")

    def first_focus(self) -> Widget | None:
        """The chart."""
        return self.query_one("#overlay")

    def shown(self) -> list[tuple[int, RunSession]]:
        """The runs in the chart, with their indices."""
        return [
            (index, session)
            for index, session in enumerate(self.desk.sessions)
            if str(session.folder.path) not in self.hidden
            and patterns.matches(self.filter, session.view.name)
        ]

    def neighbours(self) -> list[RunFolder]:
        """Runs in the first one's parent folder that are not open yet."""
        root = self.desk.session.folder.path.resolve().parent
        opened = {session.folder.path.resolve() for session in self.desk.sessions}
        return [
            run
            for run in list_runs(root)
            if run.path.resolve() not in opened and patterns.matches(self.filter, run.name)
        ]

    def update(self, slow: bool = True) -> None:
        """Draw everything, once a second."""
        if not slow:
            return
        unknown = not any(len(session.view.steps) for session in self.desk.sessions)
        if self.name_of_metric == "loss" and unknown and (tags := self._tags()):
            self.name_of_metric = tags[0]
        window = self.desk.window
        chart = self.query_one("#overlay", LineChart)
        chart.label = traces.LABELS.get(self.name_of_metric, self.name_of_metric)
        chart.empty = "nothing to compare yet; [ and ] show other metrics"
        note = f"{traces.smoothing_note(self.desk.smoothing)} ─ {self._axis_note()}"
        shown = [self._trace(i, s) for i, s in self.shown()]
        if len({trace.scaling for trace in shown}) > 1:
            note += " ─ y axis without diverged runs"
        chart.show(shown, window, note=note)
        self._draw_runs(self.query_one("#runs", Pane))
        draw_differences(self.query_one("#diff", Pane), [s for _, s in self.shown()])

    def _tags(self) -> list[str]:
        """What other programs have logged besides our own metrics."""
        tags = {tag for session in self.desk.sessions for tag in session.view.scalars.tags()}
        return scalars.names(tags, METRICS)

    def _axis_note(self) -> str:
        return traces.axis_note(self.desk.window.axis, self.desk.window.log)

    def _trace(self, index: int, session: RunSession) -> Trace:
        axis, metric, view = self.desk.window.axis, self.name_of_metric, session.view
        color, sound = palette.run_color(index), not view.diverged
        if metric == "val_loss":
            x = traces.eval_axis(view, axis)
            return Trace(view.name, x, view.evals["val_loss"], color, "points", sound)
        kind = "line" if index % 2 == 0 else "dash"
        if metric not in METRICS:
            tag = scalars.tag_of(metric, view.scalars.tags(), METRICS)
            x, y = view.scalar_axis(tag, axis), view.scalars.values(tag)
            return Trace(view.name, x, y, color, kind, sound)
        beta = SMOOTHING[self.desk.smoothing]
        return replace(
            traces.trace(view, metric, axis, beta, view.name, color, kind), scaling=sound
        )

    def _draw_runs(self, pane: Pane) -> None:
        views = [session.view for _, session in self.shown()]
        tokens = common_tokens(views)
        by = f"by {units.si(tokens)} tokens"
        heads = ("", "run", "state", "step", "tokens", "best val loss", by)
        lines, keys = [], []
        numbers = {id(session): index for index, session in self.shown()}
        for session in self.desk.sessions:
            number = numbers.get(id(session))
            lines.append(run_line(session, number, tokens, self.desk.ascii_only))
            keys.append("dim" if number is None else palette.run_color(number))
        for run in self.neighbours():
            lines.append(("+", printable(run.name, ""), "not opened", "", "", "", ""))
            keys.append("dim")
        self.selected = min(self.selected, max(0, len(lines) - 1))
        room = max(1, pane.size.height - 1)
        first = max(0, min(self.selected - room // 2, len(lines) - room))
        chosen, width = self.selected - first, pane.size.width
        rows = table(heads, lines[first : first + room], chosen, width, name=1)
        for row, key in zip(rows[1:], keys[first : first + room], strict=True):
            text, old = row[0]
            row[:] = [(text[:3], key), (text[3:], old if key != "dim" or old == "select" else key)]
        pane.set_rows(rows)
        pane.set_title("runs ─ best validation loss", "enter adds or hides a run")

    def metric(self, step: int) -> None:
        """Show the next metric; tags of other programs come after our own."""
        names = [*METRICS, *self._tags()]
        here = names.index(self.name_of_metric) if self.name_of_metric in names else 0
        self.name_of_metric = names[(here + step) % len(names)]

    def row(self, step: int) -> None:
        """Next run."""
        count = len(self.desk.sessions) + len(self.neighbours())
        self.selected = (self.selected + step) % max(1, count)

    def open(self) -> None:
        """Open a neighbour, or hide or show an open run."""
        sessions = self.desk.sessions
        if self.selected < len(sessions):
            self.hidden ^= {str(sessions[self.selected].folder.path)}
            return
        neighbours = self.neighbours()
        if self.selected - len(sessions) < len(neighbours):
            run = neighbours[self.selected - len(sessions)]
            sessions.append(RunSession(run.path, clock=self.desk.session.clock))

    def alternate(self) -> None:
        """On a narrow screen, show what differs in place of the runs, and back."""
        self.toggle_class("-other")

    def set_filter(self, pattern: str) -> None:
        """Show only runs whose name matches."""
        self.filter = pattern


def run_line(
    session: RunSession, number: int | None, tokens: float, ascii_only: bool
) -> tuple[str, ...]:
    """A run's row of the table."""
    view = session.view
    if number is None:
        sign = "-"
    else:
        sign = str(number + 1) if ascii_only else MARKS[number % len(MARKS)]
    seen = view.steps["tokens"][-1] if len(view.steps) else 0.0
    best = best_until(view, tokens)
    return (sign, view.name, session.state().word, f"{view.step:,}", units.si(float(seen)),
            units.loss(view.best_val_loss), units.loss(best))  # fmt: skip


def common_tokens(views: list[RunView]) -> float:
    """The number of tokens that every run has reached at its last evaluation."""
    seen = [float(view.evals["tokens"][-1]) for view in views if len(view.evals)]
    return min(seen, default=0.0)


def best_until(view: RunView, tokens: float) -> float | None:
    """The best validation loss among evaluations at up to ``tokens`` tokens."""
    values = view.evals["val_loss"][view.evals["tokens"] <= tokens]
    values = values[np.isfinite(values)]
    return float(values.min()) if len(values) else None


def draw_differences(pane: Pane, sessions: list[RunSession]) -> None:
    """Draw the recipe keys in which the runs differ."""
    if len(sessions) < 2:
        pane.empty("choose a second run with j/k and enter", "what differs")
        return
    recipes = [s.view.started.recipe if s.view.started else {} for s in sessions]
    if not any(recipes):
        pane.empty("these logs hold no recipes", "what differs")
        return
    names: Row = [(" ", "dim")]
    for index, session in enumerate(sessions):
        names.append((f"{units.shortened(session.view.name, 16)}  ", palette.run_color(index)))
    rows: list[Row] = []
    for key, values in differing(recipes):
        row: Row = [(f" {key}  ", "dim")]
        for index, value in enumerate(values):
            row.append((f"{short(value)}  ", palette.run_color(index)))
        rows.append(row)
    if not rows:
        pane.empty("the recipes are the same", "what differs")
        return
    pane.set_rows([names, *rows])
    pane.set_title(f"what differs ─ {len(rows)} key{'s' * (len(rows) > 1)}")
