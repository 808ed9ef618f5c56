"""``nanogpt bench tui``: the cost of the dashboard, and how much it slows the trainer down."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from nanogpt_cli.bench import tui_keys
from nanogpt_cli.cli import console, options
from nanogpt_cli.errors import UserError

_TEXT = "To be, or not to be: that is the question.\n" * 2000
_KEYS = {
    "page_loading": "key to another page while it loads",
    "axis_loading": "key to another x axis while it loads",
    "page": "key to another page afterwards",
    "axis": "key to another x axis afterwards",
}
_SETTLE = 3.0  # seconds to skip after the dashboard was started or continued


def register(group: typer.Typer) -> None:
    """Add ``tui`` to the group of benchmarks."""
    group.command(name="tui")(bench_tui)


def bench_tui(
    seconds: Annotated[
        float, typer.Option(help="Length of each window with or without the dashboard.")
    ] = 4.0,
    windows: Annotated[int, typer.Option(help="Windows of each kind, alternating.")] = 6,
    points: Annotated[int, typer.Option(help="Points of each series in the chart.")] = 100_000,
    steps: Annotated[int, typer.Option(help="Steps of the long run that is opened.")] = 1_000_000,
    keys: Annotated[
        int, typer.Option(help="Keys of each kind whose answers are timed; 0 leaves them out.")
    ] = 50,
    as_json: options.AsJson = False,
) -> None:
    """Measure the dashboard: drawing, a long run, keys, and the trainer with and without it.

    The trainer runs on one thread. The dashboard, in a pseudo-terminal of 120 x 40, is stopped and
    continued in turns. Time that the trainer waited for a CPU (schedstat) is subtracted, so that
    other programs on the machine do not count.
    """
    if windows < 2 or seconds < 1:
        raise UserError("there must be at least 2 windows of at least 1 second", "")
    if keys < 0:
        raise UserError(f"--keys {keys} is not a number of keys", "0 leaves them out")
    found: dict[str, Any] = {"loadavg": os.getloadavg()[0], "cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="nanogpt-bench-") as folder:
        found |= _drawing(Path(folder), points, steps)
        if keys:
            console.say(f"pressing {keys} keys of each kind while that run loads, and after ...")
            found["keys"] = tui_keys.measure(Path(folder) / "long", keys)
        if Path("/proc/self/schedstat").exists():
            found |= _with_trainer(Path(folder), seconds, windows)
    _report(found, points, steps, as_json)


def _drawing(folder: Path, points: int, steps: int) -> dict[str, Any]:
    from nanogpt_cli.tui import timing

    console.say(f"drawing two series of {points:,} points ...")
    found: dict[str, Any] = {
        "chart_update_ms": timing.chart_update(points) * 1000,
        "overview_update_ms": timing.overview_update(points) * 1000,
    }
    console.say(f"writing and opening a run of {steps:,} steps ...")
    timing.write_long_run(folder / "long", steps)
    code = (
        "import json, sys, pathlib; from nanogpt_cli import host; "
        "from nanogpt_cli.tui import timing; "
        "found = timing.open_run(pathlib.Path(sys.argv[1])); "
        "found['rss_mb'] = host.peak_bytes() / 2**20; "
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "long")], capture_output=True, text=True
    )
    if done.returncode:
        raise UserError("opening the long run failed", done.stderr[-500:])
    return found | {"open": json.loads(done.stdout.splitlines()[-1])}


@dataclass(frozen=True)
class _Counters:
    """Counters of trainer and dashboard at one moment."""

    wall: float
    steps: int
    waited: float  # seconds the trainer was runnable but not running
    dashboard: float  # CPU seconds of the dashboard


def _with_trainer(folder: Path, seconds: float, windows: int) -> dict[str, Any]:
    console.say(
        f"training with and without the dashboard, {windows} x 2 windows of {seconds:g} s ..."
    )
    with _trainer(folder) as (trainer, run), tui_keys.watched(run) as watched:
        watched.drain()
        dashboard = watched.process
        shares: dict[str, list[float]] = {"on": [], "off": [], "cpu": [], "held": []}
        time.sleep(_SETTLE)
        for number in range(2 * windows):
            # on, off, off, on, ...: a drift of the machine affects both alike
            on = number % 4 in (0, 3)
            os.kill(dashboard.pid, signal.SIGCONT if on else signal.SIGSTOP)
            time.sleep(0.5)
            pace, cpu = _window(run, trainer.pid, dashboard.pid, seconds)
            shares["on" if on else "off"].append(pace)
            if on:
                shares["cpu"].append(cpu)
        os.kill(dashboard.pid, signal.SIGCONT)
        watched.press(b" ")
        time.sleep(_SETTLE)
        shares["held"].append(_window(run, trainer.pid, dashboard.pid, seconds)[1])
        cost = _statistics_cost(run)
    return {
        "steps_per_s_off": statistics.median(shares["off"]),
        "steps_per_s_on": statistics.median(shares["on"]),
        "trainer_keeps": statistics.median(shares["on"]) / statistics.median(shares["off"]),
        "dashboard_cpu": statistics.median(shares["cpu"]),
        "dashboard_cpu_held": statistics.median(shares["held"]),
        "statistics_cost": cost,
    }


def _window(run: Path, trainer: int, dashboard: int, seconds: float) -> tuple[float, float]:
    """Steps per second of the time the trainer could run, and the dashboard's share of one core."""
    before = _now(run, trainer, dashboard)
    time.sleep(seconds)
    after = _now(run, trainer, dashboard)
    free = after.wall - before.wall - (after.waited - before.waited)
    share = (after.dashboard - before.dashboard) / (after.wall - before.wall)
    return (after.steps - before.steps) / max(free, 1e-3), share


def _now(run: Path, trainer: int, dashboard: int) -> _Counters:
    waited = int(Path(f"/proc/{trainer}/schedstat").read_text(encoding="ascii").split()[1])
    fields = Path(f"/proc/{dashboard}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    steps = (run / "events.jsonl").read_bytes().count(b'{"type":"step",')
    return _Counters(time.perf_counter(), steps, waited / 1e9, ticks / os.sysconf("SC_CLK_TCK"))


def _statistics_cost(run: Path) -> float | None:
    """The share of its time that the trainer spends on statistics, as its log reports it."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    costs = [json.loads(line)["cost"] for line in lines if line.startswith('{"type":"layers"')]
    return float(costs[-1]) if costs else None


@contextlib.contextmanager
def _trainer(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Train a small model in a separate process, on one thread."""
    environment = {**os.environ, "NANOGPT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    (folder / "text.txt").write_text(_TEXT, encoding="utf-8")
    program = [sys.executable, "-m", "nanogpt_cli"]
    prepare = [*program, "prepare", "text.txt", "--tokenizer", "char", "--name", "bench"]
    subprocess.run(prepare, cwd=folder, env=environment, check=True, capture_output=True)
    settings = (
        "data.name=bench", "train.max_steps=10000000", "train.eval_every=1000000",
        "train.checkpoint_every=1000000", "model.n_layer=4", "model.n_embd=64",
    )  # fmt: skip
    command = [*program, "train", "debug", "--out", "runs"]
    for setting in settings:
        command += ["--set", setting]
    with (folder / "trainer.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    run = folder / "runs" / "debug"
    try:
        while not (run / "events.jsonl").exists() or b'"step"' not in _tail(run):
            if process.poll() is not None:
                text = (folder / "trainer.log").read_text(encoding="utf-8", errors="replace")
                raise UserError("the trainer ended before its first step", text[-500:])
            time.sleep(0.2)
        yield process, run
    finally:
        process.kill()
        process.wait()


def _tail(run: Path) -> bytes:
    return (run / "events.jsonl").read_bytes()[-4096:]


def _report(found: dict[str, Any], points: int, steps: int, as_json: bool) -> None:
    from rich.table import Table

    opened = found["open"]
    rows = [
        (f"full-screen update, 2 x {points:,} points", f"{found['chart_update_ms']:.1f} ms CPU"),
        (f"update of all of Overview, {points:,} steps",
         f"{found['overview_update_ms']:.1f} ms CPU"),
        (f"first frame of {steps:,} steps",
         f"{opened['first_frame_s']:.2f} s ({opened['first_frame_cpu_s']:.2f} s CPU)"),
        ("all of them", f"{opened['all_s']:.2f} s ({opened['all_cpu_s']:.2f} s CPU)"),
        ("memory", f"{opened['rss_mb']:.0f} MB"),
    ]  # fmt: skip
    for name, kind in _KEYS.items():
        if answered := found.get("keys", {}).get(name):
            took = f"{answered['ready_median']:.0f} ms, at most {answered['ready_max']:.0f} ms"
            rows.append((f"{kind}, median", took))
    if "trainer_keeps" in found:
        cost = found["statistics_cost"]
        rows += [
            ("dashboard on a live run", f"{found['dashboard_cpu']:.1%} of one core"),
            ("the same, display held", f"{found['dashboard_cpu_held']:.1%} of one core"),
            ("trainer without dashboard", f"{found['steps_per_s_off']:.2f} steps/s"),
            ("trainer with dashboard", f"{found['steps_per_s_on']:.2f} steps/s"),
            ("the trainer keeps", f"{found['trainer_keeps']:.1%} of its speed"),
            ("statistics, as the trainer reports it", "–" if cost is None else f"{cost:.2%}"),
        ]
    if as_json:
        console.emit_json(found)
        console.next_command("nanogpt watch")
        return
    table = Table(title=f"dashboard (load {found['loadavg']:.1f} on {found['cpus']} CPUs)")
    table.add_column("what")
    table.add_column("measured", justify="right")
    for name, value in rows:
        table.add_row(name, value)
    console.stdout().print(table)
    console.next_command("nanogpt watch")
