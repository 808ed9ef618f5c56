"""The top line: name, state, progress, losses and speed of a run, as far as they fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

from nanogpt_cli import units
from nanogpt_cli.tui.drawing.plot import Row
from nanogpt_cli.tui.state.liveness import State
from nanogpt_cli.tui.state.view import RunView


def header(
    view: RunView, state: State, width: int, *, held: bool = False, ascii_only: bool = False
) -> Row:
    """One row of ``width`` cells; the fields of the highest rank are dropped first."""
    fields = [f for f in _fields(view, state, held, ascii_only) if f[1]]
    shown = list(fields)
    while len(shown) > 2 and _width(shown) > width:
        shown.remove(max(shown, key=lambda field: field[0]))
    row: Row = [(" ", "plain")]
    for _, pieces in shown:
        row += [*pieces, ("  ", "plain")]
    row = row[:-1]
    over = sum(cell_len(text) for text, _ in row) - width
    if over > 0:
        name, key = row[1]
        row[1] = (set_cell_size(name, max(1, cell_len(name) - over - 1)) + "…", key)
    return row


def comparing(
    sessions: Sequence[tuple[str, State]], width: int, *, ascii_only: bool = False
) -> Row:
    """One row that names every run being compared, with its state, as far as they fit."""
    row: Row = [(f" {len(sessions)} runs", "title")]
    for name, state in sessions:
        sign = _sign(state, ascii_only)
        pieces: Row = [("  ", "plain"), (f"{name} ", "text"), (f"{sign} {state.word}", state.key)]
        if sum(cell_len(text) for text, _ in [*row, *pieces]) > width - 3:
            return [*row, (" …", "dim")]
        row += pieces
    return row


def _sign(state: State, ascii_only: bool) -> str:
    return {"●": "*", "▲": "!", "✖": "x", "○": "o"}[state.symbol] if ascii_only else state.symbol


def _width(fields: list[tuple[int, Row]]) -> int:
    return 1 + sum(2 + sum(cell_len(text) for text, _ in pieces) for _, pieces in fields) - 2


def _fields(view: RunView, state: State, held: bool, ascii_only: bool) -> list[tuple[int, Row]]:
    """Fields in reading order, each with its rank; those of low rank are kept longest."""
    step, alarms = view.last_step, view.active_alarms
    loss = step.loss if step else None
    sign = _sign(state, ascii_only)
    fields: list[tuple[int, Row]] = [
        (0, [(view.name, "title")]),
        (1, [(f"{sign} {state.word}", state.key)]),
        (2, _progress(view)),
        (9, _bar(view, ascii_only)),
        (3, [("loss ", "dim"), (units.loss(loss), "bad" if _bad(loss) else "train")]
            if step else []),
        (5, [("val ", "dim"), (units.loss(view.last_eval.val_loss), "val")]
            if view.last_eval else []),
        (7, [(f"{units.si(view.steps.recent('tokens_per_s'))} tok/s", "text")]
            if step and step.tokens_per_s is not None else []),
        (6, [("eta ", "dim"), (units.duration(view.eta), "text")]
            if view.eta and state.live else []),
        (8, [("took ", "dim"), (units.duration(view.seconds), "text")]
            if step and not state.live else []),
        (10, _machine(view)),
        (4, [(f"{'!' if ascii_only else '▲'} {len(alarms)} alarm{'s' * (len(alarms) > 1)}",
              "warning")] if alarms else []),
        (3, [("display held", "warning")] if held else []),
    ]  # fmt: skip
    return [(rank, [(t, "error" if k == "bad" else k) for t, k in row]) for rank, row in fields]


def _machine(view: RunView) -> Row:
    """How busy the GPU is and what it holds; where there is none, the CPU."""
    machine = view.machine
    if not len(machine) or view.ended:
        return []
    busy = machine.gpu_recent("utilization", 15.0)
    used, total = (machine.gpu_recent(name, 15.0) for name in ("memory_used", "memory_total"))
    if math.isfinite(busy):
        row: Row = [("GPU ", "dim"), (units.percent(busy), "text")]
        return [*row, (f" {units.percent(used / total)} mem", "text")] if used < total else row
    share = float(machine["cpu"][-1])
    return [("CPU ", "dim"), (units.percent(share), "text")] if math.isfinite(share) else []


def _bad(value: float | None) -> bool:
    return value is not None and not abs(value) < float("inf")


def _progress(view: RunView) -> Row:
    if view.max_steps:
        return [("step ", "dim"), (f"{view.step:,}/{view.max_steps:,}", "text")]
    return [("step ", "dim"), (f"{view.step:,}", "text")] if view.step else []


def _bar(view: RunView, ascii_only: bool) -> Row:
    if not view.max_steps:
        return []
    share = min(1.0, view.step / view.max_steps)
    full = round(share * 12)
    on, off = ("#", ".") if ascii_only else ("━", "─")
    return [(on * full, "bar"), (off * (12 - full), "track"), (f" {share:.0%}", "text")]
