"""Measure the dashboard's own cost: updating a full-screen chart, and opening a long run."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from textual.app import App, ComposeResult

from nanogpt_cli.run import events
from nanogpt_cli.tui.app import Dashboard
from nanogpt_cli.tui.charts import LineChart
from nanogpt_cli.tui.plot import Trace
from nanogpt_cli.tui.session import RunSession
from nanogpt_cli.tui.window import Window

SIZE = (120, 40)


class _OneChart(App[None]):
    ascii_only = False

    def compose(self) -> ComposeResult:
        yield LineChart("loss", id="chart")


def chart_update(points: int = 100_000, updates: int = 40) -> float:
    """Median CPU seconds of one update of a full-screen chart of two series at 120 x 40.

    An update lasts from new data until Textual has composed the screen; it changes every point.
    """
    return asyncio.run(_chart_update(points, updates))


async def _chart_update(points: int, updates: int) -> float:
    rng = np.random.default_rng(0)
    x = np.arange(points, dtype=np.float64)
    noise = rng.standard_normal(points + updates).astype(np.float32)
    spent = []
    app = _OneChart()
    async with app.run_test(size=SIZE) as pilot:
        chart = app.query_one(LineChart)
        for turn in range(updates):
            y = noise[turn : turn + points]
            traces = [Trace("a", x, y, "raw", "band"), Trace("b", x, y * 0.3 + 1, "train")]
            started = time.process_time()
            chart.show(traces, Window())
            await asyncio.sleep(0)
            app.screen._compositor.render_strips()
            spent.append(time.process_time() - started)
            await pilot.pause()
    return statistics.median(spent)


def open_run(folder: Path) -> dict[str, float]:
    """Wall and CPU seconds until the first frame with data, and until the whole run is shown."""
    return asyncio.run(_open_run(folder))


async def _open_run(folder: Path) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    session = RunSession(folder)
    app = Dashboard([session])
    app.animation_level = "none"
    found: dict[str, float] = {}

    def note(name: str) -> None:
        found[f"{name}_s"] = time.perf_counter() - wall
        found[f"{name}_cpu_s"] = time.process_time() - cpu

    async with app.run_test(size=SIZE):
        await _until(lambda: app.looks >= 1)
        note("first_frame")
        await _until(lambda: not session.loading and app.looks >= 2)
        note("all")
    found["steps"] = len(session.view.steps)
    return found


async def _until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def write_long_run(folder: Path, steps: int) -> Path:
    """Write a finished run of ``steps`` noisy steps in the form in which a trainer writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    index = np.arange(1, steps + 1)
    loss = (1.4 + 9 * (1 + index / 50) ** -0.5 + 0.05 * rng.standard_normal(steps)).tolist()
    rate = (3e-4 * (1 + np.cos(np.pi * index / steps)) + 6e-5).tolist()
    start, step_s = 1_790_000_000.0, 0.09
    with (folder / "events.jsonl").open("w", encoding="utf-8") as log:
        log.write(events.encode(events.RunStarted(name=folder.name, max_steps=steps)) + "\n")
        for k in range(steps):
            event = {
                "type": "step", "time": start + k * step_s, "step": k + 1, "loss": loss[k],
                "lr": rate[k], "grad_norm": 0.5, "tokens": (k + 1) * 16384,
                "tokens_per_s": 182044.4, "step_s": step_s, "clipped": False, "skipped": False,
            }  # fmt: skip
            log.write(json.dumps(event, separators=(",", ":")) + "\n")
        ended = events.RunEnded(step=steps, reason="finished", time=start + steps * step_s)
        log.write(events.encode(ended) + "\n")
    return folder
