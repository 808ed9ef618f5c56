"""The printed report of ``nanogpt doctor``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli import extras, units
from nanogpt_cli.cli import console
from nanogpt_cli.cli.prepare_view import short_path

if TYPE_CHECKING:
    from rich.table import Table


def show(found: dict[str, Any]) -> None:
    """Print a section per subject, then the problems."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    _add(table, "versions", _versions(found["versions"]))
    _add(table, "devices", map(_device, found["devices"]))
    _add(table, "compile", [_compile(found["compile"])])
    _add(table, "threads", [_threads(found["threads"])])
    _add(table, "disk", map(_disk, found["disk"]))
    _add(table, "holds", map(_cache, filter(lambda cache: cache["bytes"], found["caches"])))
    _add(table, "terminal", _terminal(found["terminal"]))
    _add(table, "extras", [_extra(name, row) for name, row in found["extras"].items()])
    console.stdout().print(table)
    for problem in found["problems"]:
        console.say(f"broken: {problem}")
    if not found["problems"]:
        console.say("nothing essential is broken")
        console.next_command("nanogpt train small")
    else:
        console.next_command("nanogpt doctor")


def _add(table: Table, title: str, lines: Iterable[str]) -> None:
    from rich.text import Text

    for number, line in enumerate(lines):
        table.add_row(title if number == 0 else "", Text(line))


def _versions(versions: dict[str, str]) -> list[str]:
    named = [f"{k} {v or 'MISSING'}" for k, v in versions.items() if k != "platform"]
    return [", ".join(named), versions["platform"]]


def _device(unit: dict[str, Any]) -> str:
    rates = ", ".join(f"{name} {_flops(rate)}" for name, rate in unit["tflops"].items())
    memory = f", {units.decimal_size(unit['memory_bytes'])}" if unit["memory_bytes"] else ""
    return f"{unit['device']}: {unit['name']}{memory}; matmul {rates or 'failed'}"


def _flops(tflops: float) -> str:
    return f"{tflops:.3g} TFLOP/s" if tflops >= 1 else f"{tflops * 1000:.3g} GFLOP/s"


def _compile(row: dict[str, Any]) -> str:
    if row["works"]:
        return f"works on {row['device']} ({row['seconds']:.0f} s for a first small function)"
    return row["why"] if row["works"] is None else f"does not work: {row['why']}"


def _threads(row: dict[str, Any]) -> str:
    if not row:
        return "unknown"
    text = f"torch uses {row['torch']} of {row['usable']} usable cores"
    text += f" ({row['cores']} in the machine)" if row["cores"] != row["usable"] else ""
    named = [f"{key}={row[key]}" for key in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if row[key]]
    return ", ".join([text, *named])


def _cache(row: dict[str, Any]) -> str:
    return f"{row['name']} {units.decimal_size(row['bytes'])}, {short_path(Path(row['path']))}"


def _disk(row: dict[str, Any]) -> str:
    state = "" if row["writable"] else ", NOT WRITABLE"
    return f"{row['name']}: {units.decimal_size(row['free_bytes'])} free{state}, {row['path']}"


def _terminal(row: dict[str, Any]) -> list[str]:
    kind = f"TERM={row['TERM'] or '(none)'}"
    line = f"{kind}, {row['width']}×{row['height']}, colours: {row['colours']}, {row['encoding']}"
    line += ", NO_COLOR" if row["NO_COLOR"] else ""
    if row["dashboard"]:
        return [line, "the dashboard can be drawn here"]
    return [line, f"no dashboard here: {row['why_no_dashboard']}"]


def _extra(name: str, row: dict[str, Any]) -> str:
    if row["installed"]:
        return f"✓ {name}: {row['brings']}"
    lacks = f" (missing {', '.join(row['missing'])})" if len(row["missing"]) > 1 else ""
    return f"– {name}: {row['brings']}{lacks}; {extras.install_command(name)}"
