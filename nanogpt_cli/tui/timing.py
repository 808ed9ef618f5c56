"""Measure the dashboard's own cost: updating a chart and a page, and opening a long run."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from textual._compositor import CompositorUpdate
from textual.app import App, ComposeResult
from textual.screen import Screen

from nanogpt_cli.run import events
from nanogpt_cli.tui.app import Dashboard
from nanogpt_cli.tui.drawing.plot import Trace
from nanogpt_cli.tui.state.session import RunSession
from nanogpt_cli.tui.state.window import Window
from nanogpt_cli.tui.widgets.charts import LineChart

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


class _Painting(Dashboard):
    """A dashboard without a terminal that makes every frame for one all the same."""

    frames = 0

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:  # noqa: ARG002
        if isinstance(renderable, CompositorUpdate):
            renderable.render_segments(self.console)
            self.frames += 1


def overview_update(steps: int = 100_000, updates: int = 100) -> float:
    """Median CPU seconds of an update of all of page Overview at 120 x 40, after ``steps`` steps.

    An update lasts from 50 new steps, one with statistics of 6 layers, until the frame is written.
    """
    return asyncio.run(_overview_update(steps, updates))


async def _overview_update(steps: int, updates: int) -> float:
    session, rng, spent = RunSession(Path("run")), np.random.default_rng(0), list[float]()
    session.loading = False
    view = session.view
    view.fold(events.RunStarted(name="run", max_steps=2 * steps, n_layer=6))

    def more(first: int) -> None:
        view.fold_many([_step(step, rng) for step in range(first, first + 50)])
        rms = {"resid_rms": rng.uniform(1, 2, 6).tolist()}
        view.fold(events.Layers(step=first + 49, stats=rms, every=50))

    for first in range(1, steps, 50):
        more(first)
    view.fold(events.Sample(step=steps, prompt="ROMEO:", text=" What light is this?" * 20))
    app = _Painting([session], live=False)
    app.animation_level = "none"
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        await pilot.pause()
        for _ in range(updates):
            more(view.step + 1)
            await asyncio.sleep(0.02)  # there is a pause between two looks in life, too
            frames, started = app.frames, time.process_time()
            app.draw(force=True)
            await _until(lambda: app.frames > frames, pause=0)  # noqa: B023
            spent.append(time.process_time() - started)
    return statistics.median(spent)


def _step(step: int, rng: np.random.Generator) -> events.Step:
    loss = 1.4 + 9 * (1 + step / 50) ** -0.5 + 0.05 * rng.standard_normal()
    return events.Step(
        step=step, time=1.79e9 + step * 0.09, loss=loss, lr=3e-4, grad_norm=rng.gamma(2, 0.2),
        tokens=step * 16384, tokens_per_s=rng.normal(1e5, 5e3), step_s=0.09,
    )  # fmt: skip


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


async def _until(true: Callable[[], bool], pause: float = 0.005) -> None:
    while not true():
        await asyncio.sleep(pause)


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
