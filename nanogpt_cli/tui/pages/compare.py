"""Page 3: several runs in one chart, their best losses, and the differences of their recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.cells import cell_len, set_cell_size
from textual.app import ComposeResult
from textual.widget import Widget

from nanogpt_cli import units
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import printable
from nanogpt_cli.run.folder import RunFolder, list_runs
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.drawing import palette, traces
from nanogpt_cli.tui.drawing.plot import Row
from nanogpt_cli.tui.pages.compare_grid import CompareGrid, Shown, groups, known, selected
from nanogpt_cli.tui.pages.page import Across, Page
from nanogpt_cli.tui.state import patterns, scalars
from nanogpt_cli.tui.state.recipes import differing, short
from nanogpt_cli.tui.state.session import RunSession
from nanogpt_cli.tui.state.view import RunView
from nanogpt_cli.tui.widgets.panes import Pane, table

METRICS = ("loss", "val_loss", "grad_norm", "lr", "tokens_per_s")
MARKS = "●■▲◆▼★○"
_MOST_NAME = 16  # cells of a run's name beside what differs


class ComparePage(Page):
    """The opened or selected runs and their neighbours; enter adds or removes one."""

    def __init__(self, desk: Desk, id: str) -> None:
        super().__init__(desk, id)
        self.chosen = ["loss"]
        self.selected = 0
        self.hidden: set[str] = set()

    def compose(self) -> ComposeResult:
        """Yield the charts above, runs and differences below."""
        yield CompareGrid(self.desk, id="overlays")
        with Across(id="tables"):
            yield Pane(id="runs")
            yield Pane(id="diff")

    def first_focus(self) -> Widget | None:
        """The first chart."""
        return self.query_one("#overlay")

    def shown(self) -> list[tuple[int, RunSession]]:
        """The runs in the charts, with their indices: those selected, else all that are open."""
        return [
            (index, session)
            for index, session in enumerate(self.desk.sessions)
            if self._wanted(session) and patterns.matches(self.filter, session.view.name)
        ]

    def _wanted(self, session: RunSession) -> bool:
        if self.desk.workspace.selected:
            return session in self.desk.compared
        return str(session.folder.path) not in self.hidden

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
        if self.chosen == ["loss"] and unknown and (tags := self._tags()):
            self.chosen = tags[:1]
        shown = self.shown()
        note = f"{traces.smoothing_note(self.desk.smoothing)} ─ {self._axis_note()}"
        runs = [Shown(session.view, self._color(n, session)) for n, session in shown]
        self.set_class(len(self.chosen) > 1, "-several")
        self.query_one("#overlays", CompareGrid).draw(runs, self.chosen, note)
        places = self._places()
        self._draw_runs(self.query_one("#runs", Pane), places)
        drawn = [Shown(run.view, places[id(run.view)][1]) for run in runs]
        draw_differences(self.query_one("#diff", Pane), drawn)

    def _tags(self) -> list[str]:
        """What other programs have logged besides our own metrics."""
        tags = {tag for session in self.desk.sessions for tag in session.view.scalars.tags()}
        return scalars.names(tags, METRICS)

    def _axis_note(self) -> str:
        return traces.axis_note(self.desk.window.axis, self.desk.window.log)

    def _color(self, index: int, session: RunSession) -> str:
        """The colour that the user gave the run, else that of its place."""
        entry = self.desk.workspace.entries.get(session.folder.path.resolve())
        given = entry.notes.color if entry else None
        return palette.run_color(index if given is None else given)

    def _places(self) -> dict[int, tuple[int, str]]:
        """Number and colour of each run in the charts; seeds of one line share the first's."""
        shown = self.shown()
        runs = [Shown(session.view, self._color(n, session)) for n, session in shown]
        numbers = {id(run.view): n for run, (n, _) in zip(runs, shown, strict=True)}
        return {
            id(run.view): (numbers[id(part[0].view)], part[0].color)
            for part in groups(runs)
            for run in part
        }

    def _draw_runs(self, pane: Pane, places: Mapping[int, tuple[int, str]]) -> None:
        views = [session.view for _, session in self.shown()]
        tokens = common_tokens(views)
        by = f"by {units.si(tokens)} tokens"
        heads = ("", "run", "state", "step", "tokens", "best val loss", by)
        lines, keys = [], []
        for session in self.desk.sessions:
            number, color = places.get(id(session.view), (None, "dim"))
            lines.append(run_line(session, number, tokens, self.desk.ascii_only))
            keys.append(color)
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
        """Show the next metric that a run holds, alone; tags of other programs come last."""
        held = self._known()
        names = [*(n for n in METRICS if n in held), *self._tags()] or list(METRICS)
        first = self.chosen[0] if step < 0 else self.chosen[-1]
        here = names.index(first) if first in names else -1
        self.chosen = [names[(here + step) % len(names)]]

    def judge(self, text: str) -> tuple[bool, str]:
        """Whether a text means metrics, and how many."""
        try:
            found = selected(text, self._known())
        except UserError as error:
            return False, f"{error.message}: {error.hint}"
        return True, units.counted(len(found) or 1, "chart")

    def choose(self, text: str) -> None:
        """Show the metrics that a text means, a chart each; none means the loss.

        Raises:
            UserError: a word means none.
        """
        self.chosen = selected(text, self._known()) or ["loss"]
        self.query_one("#overlays", CompareGrid).page_number = 0

    def _known(self) -> list[str]:
        return known([session.view for _, session in self.shown()])

    def row(self, step: int) -> None:
        """Next run."""
        count = len(self.desk.sessions) + len(self.neighbours())
        self.selected = (self.selected + step) % max(1, count)

    def turn(self, step: int) -> None:
        """Next or previous charts, where they do not all fit."""
        self.query_one("#overlays", CompareGrid).turn(step)

    def open(self) -> None:
        """Open a neighbour, or hide or show an open run."""
        sessions, workspace = self.desk.sessions, self.desk.workspace
        if self.selected < len(sessions):
            path = sessions[self.selected].folder.path
            if not workspace.selected:
                self.hidden ^= {str(path)}
            elif path.resolve() in workspace.selected:
                workspace.selected.remove(path.resolve())
            else:
                workspace.selected.append(path.resolve())
            return
        neighbours = self.neighbours()
        if self.selected - len(sessions) < len(neighbours):
            run = neighbours[self.selected - len(sessions)]
            self.desk.keep(run.path.resolve())
            if workspace.selected:
                workspace.selected.append(run.path.resolve())

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


def draw_differences(pane: Pane, runs: Sequence[Shown]) -> None:
    """Draw the recipe keys in which the runs differ: a row each, or a column for many runs."""
    if len(runs) < 2:
        pane.empty("choose a second run with j/k and enter", "what differs")
        return
    recipes = [run.view.started.recipe if run.view.started else {} for run in runs]
    if not any(recipes):
        pane.empty("these logs hold no recipes", "what differs")
        return
    found = differing(recipes)
    if not found:
        pane.empty("the recipes are the same", "what differs")
        return
    names = [(units.shortened(run.view.name, _MOST_NAME, cell_len), run.color) for run in runs]
    lines = [[("", "dim"), *names]]
    for key, values in found:
        told = ((short(value), run.color) for value, run in zip(values, runs, strict=True))
        lines.append([(key, "dim"), *told])
    width = pane.size.width
    if sum(_sizes(lines)) > width:
        lines = [list(column) for column in zip(*lines, strict=True)]
    pane.set_rows([_aligned(line, _sizes(lines), width) for line in lines])
    pane.set_title(f"what differs ─ {units.counted(len(found), 'key')}")


def _sizes(lines: Sequence[Row]) -> list[int]:
    """Cells of each column, with the blanks before it."""
    return [
        max(cell_len(line[i][0]) for line in lines) + 2 - (i == 0) for i in range(len(lines[0]))
    ]


def _aligned(line: Row, sizes: Sequence[int], width: int) -> Row:
    """A line in columns; "…" stands for those that do not fit."""
    row: Row = []
    room = width
    for number, ((text, key), size) in enumerate(zip(line, sizes, strict=True)):
        last = number == len(sizes) - 1
        if number and size + 2 * (not last) > room:
            return [*row, (" …", "dim")]
        row.append((" " * (1 + (number > 0)) + set_cell_size(text, size - 1 - (number > 0)), key))
        room -= size
    return row
