"""The rows of the list of runs, and the line above it. No side effects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len, set_cell_size

from nanogpt_cli import units
from nanogpt_cli.printable import printable
from nanogpt_cli.tui.drawing import palette
from nanogpt_cli.tui.drawing.draw import sparkline
from nanogpt_cli.tui.drawing.plot import Row
from nanogpt_cli.tui.state.entries import Entry
from nanogpt_cli.tui.state.workspace import SORTS, Workspace
from nanogpt_cli.tui.widgets.panes import wrap

_LEAST_NAME, _MOST_NAME = 12, 40
_LEAST_CURVE, _MOST_CURVE = 8, 24


@dataclass(frozen=True)
class Column:
    """A column of fixed width; those of the highest rank are left out first."""

    head: str
    width: int
    rank: int
    cell: Callable[[Entry, float], tuple[str, str]]  # text and colour key, at a time


def age(seconds: float | None) -> str:
    """Whole seconds, minutes, hours, days or years: ``45s``, ``12m``, ``3h``, ``20d``, ``4y``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    for size, unit in ((365 * 86400, "y"), (86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def _state(entry: Entry, _: float) -> tuple[str, str]:
    return f"{entry.state.symbol} {entry.state.word}", entry.state.key


def _loss(entry: Entry, _: float) -> tuple[str, str]:
    step = entry.summary.last_step
    bad = step is not None and not math.isfinite(step.loss)
    return units.loss(step.loss) if step else "–", "error" if bad else "text"


def _best(entry: Entry, _: float) -> tuple[str, str]:
    best, exact = entry.summary.best, entry.summary.best_is_exact
    return ("" if exact or best is None else "≤") + units.loss(best), "val"


def _speed(entry: Entry, _: float) -> tuple[str, str]:
    return units.si(entry.speed) if entry.speed is not None else "–", "text"


def _alarms(entry: Entry, _: float) -> tuple[str, str]:
    found = entry.summary.alarms
    bad = any(alarm.severity == "error" for alarm in found)
    return f"▲{len(found)}" if found else "", "error" if bad else "warning"


def _age(entry: Entry, now: float) -> tuple[str, str]:
    return age(entry.age(now)), "dim"


def _step(entry: Entry, _: float) -> tuple[str, str]:
    started = entry.summary.started
    planned = f"/{units.si(started.max_steps)}" if started and started.max_steps else ""
    return f"{units.si(entry.summary.step)}{planned}", "text"


def _said(entry: Entry, _: float) -> tuple[str, str]:
    said = [*(f"#{tag}" for tag in entry.notes.tags), entry.notes.note]
    return " ".join(filter(None, said)), "prompt"


# The heads are names of ``workspace.SORTS`` where a column orders the list.
COLUMNS = (
    Column("state", 12, 0, _state),
    Column("loss", 8, 6, _loss),
    Column("best", 8, 1, _best),
    Column("tok/s", 6, 4, _speed),
    Column("alarms", 6, 3, _alarms),
    Column("age", 4, 2, _age),
    Column("step", 9, 5, _step),
    Column("tags, note", 16, 7, _said),
)
_RIGHT = ("loss", "best", "tok/s", "age", "step")


def fitting(width: int) -> tuple[list[Column], int, int]:
    """The columns that fit into ``width`` cells, and the widths of name and curve."""
    shown = list(COLUMNS)

    def over() -> int:
        fixed = sum(column.width + 2 for column in shown)
        return fixed + 3 + _LEAST_NAME + 2 + _LEAST_CURVE + 1 - width

    while over() > 0 and len(shown) > 1:
        shown.remove(max(shown, key=lambda column: column.rank))
    spare = max(0, -over())
    name = min(_MOST_NAME, _LEAST_NAME + (spare + 1) // 2)
    curve = min(_MOST_CURVE, _LEAST_CURVE + max(0, spare - (name - _LEAST_NAME)))
    return shown, name, curve


def rows(
    workspace: Workspace, entries: Sequence[Entry], width: int, height: int, *, ascii_only: bool
) -> list[Row]:
    """A line of heads, and the runs around the cursor."""
    columns, name_width, curve_width = fitting(width)
    spare = width - 3 - name_width - 2 - curve_width - sum(c.width + 2 for c in columns)
    now, current = workspace.clock(), workspace.entry()
    at = next((n for n, entry in enumerate(entries) if entry is current), 0)
    room = max(1, height - 1)
    first = max(0, min(at - room // 2, len(entries) - room))
    arrow = "↑" if _ascending(workspace) else "↓"
    heads = [_head("run", name_width, workspace, arrow), "loss curve".ljust(curve_width)]
    if curve_width < 10:
        heads[1] = "curve".ljust(curve_width)
    texts = [_head(c.head, _wide(c, columns, spare), workspace, arrow) for c in columns]
    found: list[Row] = [[("   " + "  ".join([*heads, *texts]), "dim")]]
    for number, entry in enumerate(entries[first : first + room], first):
        cells = [(*c.cell(entry, now), c.head, _wide(c, columns, spare)) for c in columns]
        row: Row = [*_signs(workspace, entry), (_fit(entry.name, name_width), _name_key(entry))]
        row.append(("  " + curve(entry, curve_width, ascii_only), "train"))
        for text, key, head, size in cells:
            row.append(("  " + _fit(text, size, right=head in _RIGHT), key))
        if number == at:
            row = [(set_cell_size("".join(text for text, _ in row), width), "select")]
        found.append(row)
    return found


def _ascending(workspace: Workspace) -> bool:
    # The newest runs are the youngest: the age grows down the list.
    return (SORTS[workspace.sort][1] != workspace.reverse) == (workspace.sort == "age")


def _wide(column: Column, columns: Sequence[Column], spare: int) -> int:
    """The last column takes the room that is left, if it is text."""
    return column.width + (max(0, spare) if column is columns[-1] and column.rank == 7 else 0)


def _head(name: str, width: int, workspace: Workspace, arrow: str) -> str:
    text = name + (arrow if name == workspace.sort else "")
    return text.rjust(width) if name in _RIGHT else text.ljust(width)


def _fit(text: str, width: int, *, right: bool = False) -> str:
    text = units.shortened(printable(text, ""), width, cell_len)
    if right:
        text = " " * max(0, width - cell_len(text)) + text
    return set_cell_size(text, width)


def _signs(workspace: Workspace, entry: Entry) -> Row:
    """Whether a run is chosen for Compare, and whether it is pinned or hidden."""
    chosen = entry.path in workspace.selected
    key = palette.run_color(workspace.selected.index(entry.path)) if chosen else "dim"
    if entry.notes.color is not None:
        key = palette.run_color(entry.notes.color)
    pinned = "★" if entry.notes.pinned else "·" if entry.notes.hidden else " "
    return [("■" if chosen else " ", key), (pinned, "warning"), (" ", "plain")]


def _name_key(entry: Entry) -> str:
    if entry.notes.hidden:
        return "dim"
    return "title" if entry.notes.color is None else palette.run_color(entry.notes.color)


def curve(entry: Entry, width: int, ascii_only: bool) -> str:
    """The loss along the run's steps as ``width`` bars."""
    points = entry.summary.points
    if len(points) < 2:
        return " " * width
    steps, losses = np.array(points, np.float64).T
    ends = np.linspace(steps[0], steps[-1], min(width, len(points)))
    values = losses[np.searchsorted(steps, ends, side="right") - 1]
    # The first steps fall so far that the rest would be a flat line; they are cut off at the top.
    later = values[len(values) // 5 :]
    if np.isfinite(later).any():
        values = np.minimum(values, np.max(later[np.isfinite(later)]))
    return sparkline(values, width, ascii_only=ascii_only)


def headline(workspace: Workspace, width: int) -> Row:
    """How many runs there are, in which states, and what the list leaves out."""
    entries = list(workspace.entries.values())
    live = sum(entry.state.live for entry in entries)
    bad = sum(entry.state.key == "error" for entry in entries)
    hidden = sum(entry.notes.hidden for entry in entries)
    pieces: Row = [(f" {units.counted(len(entries), 'run')}", "title")]
    pieces += [(f"  {live} live", "ok")] if live else []
    pieces += [(f"  {bad} failed", "error")] if bad else []
    pieces += [(f"  {len(workspace.selected)} selected", "key")] if workspace.selected else []
    pieces += [(f"  {hidden} hidden", "dim")] if hidden else []
    if workspace.filter:
        text = f"  {len(workspace.rows())} match {workspace.filter}"
        pieces.append((printable(text, ""), "warning"))
    pieces += [("  reading …", "dim")] if workspace.busy else []
    row: Row = []
    for text, key in pieces:
        room = width - sum(cell_len(shown) for shown, _ in row)
        row.append((text if cell_len(text) <= room else set_cell_size(text, max(0, room)), key))
    return row


def about(entry: Entry, width: int, now: float) -> list[Row]:
    """What the list has no room for: the state in full, alarms, note, tags and the recipe."""
    state, recipe = entry.state, entry.recipe
    said = [(f"{state.word}: {state.detail}" if state.detail else state.word, state.key)]
    said += [(alarm.message, "warning") for alarm in entry.summary.alarms]
    said += [(" ".join(f"#{tag}" for tag in entry.notes.tags), "prompt")]
    said += [(entry.notes.note, "prompt"), (entry.notes.problem, "error")]
    keys = ("model.n_layer", "model.n_embd", "model.init", "optim.lr", "train.batch_size",
            "run.seed")  # fmt: skip
    parts = [f"{key.rpartition('.')[2]} {recipe[key]}" for key in keys if key in recipe]
    parts += [str(recipe["optim.name"])] if "optim.name" in recipe else []
    if entry.parameters:
        parts.insert(0, f"{units.si(entry.parameters)} parameters")
    said += [(" · ".join(parts), "text"), (f"began {age(entry.age(now))} ago", "dim")]
    if not entry.summary.began:
        said.pop()
    found: list[Row] = []
    for text, key in said:
        for line in wrap(text, max(8, width - 2)) if text else ():
            found.append([(f" {line}", key)])
    return found
