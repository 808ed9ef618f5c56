"""The panes of the System page: where the time goes, and the newest sample as numbers."""

from __future__ import annotations

import math

import numpy as np
from rich.cells import cell_len, set_cell_size

from nanogpt_cli import units
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.drawing.draw import sparkline
from nanogpt_cli.tui.drawing.plot import Row
from nanogpt_cli.tui.state import slowness
from nanogpt_cli.tui.state.machine import PARTS, positions
from nanogpt_cli.tui.state.series import Floats
from nanogpt_cli.tui.state.view import RunView
from nanogpt_cli.tui.widgets.panes import Pane, table, wrap

# Of each part: its name, its mark in the bar and the table, and its colour key.
_LOOKS = {
    "data": ("data", "●", "lr"),
    "compute": ("forward/backward", "█", "train"),
    "optimizer": ("optimizer", "▓", "speed"),
    "statistics": ("statistics", "·", "prompt"),
    "evaluation": ("evaluation", "▒", "val"),
    "checkpoint": ("checkpoints", "◆", "warning"),
    "sample": ("samples", "×", "added"),
    "paused": ("paused", "│", "dim"),
    "other": ("other", "─", "dim"),
}  # fmt: skip
_SPARK = 12
_LABEL = 9


class TimesPane(Pane):
    """Why it is slow, in a sentence; and the seconds of every part as a bar and a table."""

    def draw(self, desk: Desk, why_empty: str, more: str) -> None:
        """Draw the last minute beside the whole run, up to the crosshair if there is one."""
        view, width = desk.view, self.size.width
        if not len(view.machine):
            self.empty(why_empty, "system")
            return
        until = at_cursor(desk)
        recent, whole = view.machine.spent(slowness.MINUTE, until), view.machine.spent(until=until)
        when = "the last minute" if until is None else "the minute before the crosshair"
        self.set_title(f"why is it slow? ─ {when}", more)
        if not sum(whole.values()):
            self.set_rows([[(" no training is timed here", "dim")]])
            return
        said = slowness.answer(view) if until is None else ""
        rows: list[Row] = [
            [(f" {line}", "title")] for line in wrap(said, max(8, width - 2)) if line
        ]
        rows.append([(" ", "plain"), *bar(recent, max(4, width - 2))])
        steps = float(np.nansum(view.machine["steps"][: None if until is None else until + 1]))
        # On a small screen the smallest parts are left out.
        room = max(1, self.size.height - len(rows) - 1)
        largest = sorted(PARTS, key=lambda part: -whole[part])[:room]
        shown = [part for part in PARTS if part in largest and whole[part] > 0]
        lines = [_line(part, recent, whole, steps) for part in shown]
        heads = (" ", "part", "minute", "%", "run", "%", "a step")
        for row, part in zip(
            table(heads, lines, None, width, name=1), ["", *shown],
            strict=True,
        ):  # fmt: skip
            rows.append([(row[0][0], _LOOKS[part][2] if part else "dim")])
        self.set_rows(rows[: self.size.height])


def _line(
    part: str, recent: dict[str, float], whole: dict[str, float], steps: float
) -> tuple[str, ...]:
    name, sign, _ = _LOOKS[part]
    now, ever = sum(recent.values()), sum(whole.values())
    each = _milliseconds(whole[part] / steps) if steps else "–"
    return (
        sign, name, _seconds(recent[part]), units.percent(recent[part] / now if now else None),
        _seconds(whole[part]), units.percent(whole[part] / ever), each,
    )  # fmt: skip


def _seconds(seconds: float) -> str:
    if seconds >= 60:
        return units.duration(seconds)
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"


def _milliseconds(seconds: float) -> str:
    if seconds >= 10:
        return units.duration(seconds)
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.2g} ms"


def bar(spent: dict[str, float], width: int) -> Row:
    """The parts as pieces of one bar, as long as their shares; the largest gets what is left."""
    total = sum(spent.values())
    if total <= 0:
        return [("─" * width, "dim")]
    cells = {part: int(width * seconds / total) for part, seconds in spent.items()}
    largest = max(spent, key=lambda part: spent[part])
    cells[largest] += width - sum(cells.values())
    return [(_LOOKS[part][1] * count, _LOOKS[part][2]) for part, count in cells.items() if count]


def at_cursor(desk: Desk) -> int | None:
    """The index of the sample at the crosshair; ``None`` without one."""
    machine, cursor = desk.view.machine, desk.window.cursor
    if cursor is None or not len(machine):
        return None
    x = positions(machine.columns, desk.view.steps, desk.window.axis)
    return max(0, int(np.searchsorted(x, cursor, side="right")) - 1)


class NowPane(Pane):
    """The newest sample, or that at the crosshair, and how each number went lately."""

    def draw(self, desk: Desk, more: str) -> None:
        """Draw a line for each number that is known."""
        view = desk.view
        if not len(view.machine):
            self.empty("", "machine")
            return
        until = at_cursor(desk)
        index = len(view.machine) - 1 if until is None else until
        width, spark = self.size.width, _SPARK if self.size.width >= 44 else 0
        rows: list[Row] = []
        for label, text, values in _numbers(view, index):
            room = max(4, width - _LABEL - 3 - spark)
            # What has no curve may use its place as well.
            wide = room if values is not None else room + spark
            shown = units.shortened(text, wide, cell_len)
            row: Row = [(f" {label:<{_LABEL}} ", "dim"), (set_cell_size(shown, wide), "text")]
            if values is not None and spark:
                values = values[np.isfinite(values)]
                row.append((sparkline(values, spark, ascii_only=desk.ascii_only), "train"))
            rows.append(row)
        if desk.session.no_gpus:
            said = wrap(desk.session.no_gpus, max(8, width - _LABEL - 3))
            rows += [[(f" {'GPU' * (n == 0):<{_LABEL}} ", "dim"), (line, "dim")]
                     for n, line in enumerate(said)]  # fmt: skip
        self.set_rows(rows[: self.size.height])
        self.set_title(f"machine ─ {_where(view)}", more if until is None else "at the crosshair")


def _where(view: RunView) -> str:
    started = view.started
    host = started.host if started and started.host else "this one"
    return f"{host} (that of the first rank)" if started and started.processes > 1 else host


def _numbers(view: RunView, index: int) -> list[tuple[str, str, Floats | None]]:
    """Label, text, and the values up to then, of each number that the system tells."""
    machine = view.machine
    now = {name: float(machine[name][index]) for name in (
        "cores", "cpu", "load", "process_cpu", "memory_used", "memory_total", "group_used",
        "group_limit", "rss", "children", "children_rss", "disk_free", "disk_total")}  # fmt: skip
    known = {name for name, value in now.items() if math.isfinite(value)}
    found: list[tuple[str, str, Floats | None]] = []

    def add(label: str, name: str, text: str) -> None:
        if name in known:
            found.append((label, text, machine[name][: index + 1]))

    load = f", load {now['load']:.1f}" if "load" in known else ""
    add("CPU", "cpu", f"{units.percent(now['cpu'])} busy{load}")
    add("this run", "process_cpu", f"{now['process_cpu']:.2f} of {now['cores']:.0f} cores")
    add("memory", "memory_used", _of(now["memory_used"], now["memory_total"]))
    add("its limit", "group_used", _of(now["group_used"], now["group_limit"]))
    children = now["children"] if {"children", "children_rss"} <= known else 0
    more = f" + {units.size(now['children_rss'])} of {children:.0f} children" if children else ""
    add("trainer", "rss", units.size(now["rss"]) + more)
    add("disk", "disk_free", f"{_of(now['disk_free'], now['disk_total'])} free")
    for number, (key, gpu) in enumerate(machine.gpus.items()):
        place = int(np.searchsorted(gpu["clock"], machine["clock"][index], side="right")) - 1
        if place >= 0:
            newest = index == len(machine) - 1
            found += _gpu_numbers(view, number, key, place, newest)
    return found


def _gpu_numbers(
    view: RunView, number: int, key: str, place: int, newest: bool
) -> list[tuple[str, str, Floats | None]]:
    gpu = view.machine.gpus[key]
    now = {name: float(gpu[name][place]) for name in (
        "utilization", "memory_used", "memory_total", "torch_allocated", "torch_reserved",
        "torch_peak", "power_w", "power_limit_w", "temperature_c", "sm_mhz",
        "sm_max_mhz")}  # fmt: skip
    known = {name for name, value in now.items() if math.isfinite(value)}
    found: list[tuple[str, str, Floats | None]] = []
    label = f"GPU {number}"
    if "utilization" in known:
        busy = f"{units.percent(now['utilization'])} busy"
        found.append((label, busy, gpu["utilization"][: place + 1]))
    if "memory_used" in known:
        text = _of(now["memory_used"], now["memory_total"])
        found.append((" memory", text, gpu["memory_used"][: place + 1]))
    if "torch_allocated" in known:
        text = units.size(now["torch_allocated"])
        text += f" of {units.size(now['torch_reserved'])} reserved" * ("torch_reserved" in known)
        text += f", peak {units.size(now['torch_peak'])}" * ("torch_peak" in known)
        found.append((" torch", text, None))
    parts = [
        f"{now['power_w']:.0f}" + (f" of {now['power_limit_w']:.0f} W"
                                   if "power_limit_w" in known else " W")
        if "power_w" in known else "",
        f"{now['temperature_c']:.0f} C" if "temperature_c" in known else "",
        f"{now['sm_mhz']:.0f}" + (f" of {now['sm_max_mhz']:.0f} MHz"
                                  if "sm_max_mhz" in known else " MHz")
        if "sm_mhz" in known else "",
    ]  # fmt: skip
    if any(parts):
        found.append((" power", ", ".join(filter(None, parts)), None))
    if newest and (why := slowness.throttled(view)):
        found.append((" held", f"clock held back: {', '.join(why)}", None))
    return found


def _of(used: float, total: float) -> str:
    """``3.9 of 23.5 GiB``; with two units where they differ."""
    first, second = units.size(used), units.size(total) if math.isfinite(total) else ""
    number, unit = first.split(" ")
    shown = number if second.endswith(f" {unit}") else first
    return f"{shown} of {second}" if second else first
