"""The System page: where the time goes and why it is slow, at four sizes, from logged samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded
from helpers import SIZES, dashboard, load, opened, press, screen, settle
from nvml_replay import Replay

from nanogpt_cli.nvml import Nvml
from nanogpt_cli.run import events
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.training import step_times
from nanogpt_cli.tui import header, keys, words
from nanogpt_cli.tui.machine_app import MachineSession, machine_dashboard
from nanogpt_cli.tui.pages import system_panes
from nanogpt_cli.tui.pages.system import CHARTS, traces
from nanogpt_cli.tui.state import slowness
from nanogpt_cli.tui.state.liveness import State
from nanogpt_cli.tui.state.machine import PARTS, MachineHistory
from nanogpt_cli.tui.state.view import RunView

SNAPSHOTS = Path(__file__).parent / "snapshots"
GIB = 2**30
GPU = {
    "name": "Synthetic", "utilization": 0.97, "memory_used": 60 * GIB, "memory_total": 80 * GIB,
    "torch_allocated": 41 * GIB, "torch_reserved": 58 * GIB, "torch_peak": 52 * GIB,
    "power_w": 612.0, "power_limit_w": 700.0, "temperature_c": 61, "sm_mhz": 1755,
    "sm_max_mhz": 1980, "memory_mhz": 2619, "throttled": ["power cap"],
}  # fmt: skip
BUSY = {"data": 0.05, "compute": 4.4, "optimizer": 0.4, "statistics": 0.05, "other": 0.1}


def sample(**changed: Any) -> events.System:
    values: dict[str, Any] = {
        "time": recorded.START + 5, "step": 50, "seconds": 5.0, "steps": 55, "times": BUSY,
        "cores": 8, "cpu": 0.31, "load": 3.1, "process_cpu": 1.4, "memory_used": 21 * GIB,
        "memory_total": 64 * GIB, "rss": 3 * GIB, "children": 2, "children_rss": GIB,
        "disk_free": 210 * GIB, "disk_total": 500 * GIB, "gpus": {"uuid-0": GPU},
    }  # fmt: skip
    return events.System(**(values | changed))


def with_samples(found: Iterator[events.Event]) -> Iterator[events.Event]:
    """A sample every five seconds of a recorded run, with a GPU that works and an evaluation."""
    due, rng = recorded.START + 5, np.random.default_rng(3)
    evaluating = 0.0
    for event in found:
        if event.time >= due and isinstance(event, events.Step):
            busy = float(np.clip(0.97 - evaluating / 10 + 0.01 * rng.standard_normal(), 0, 1))
            gpu = GPU | {"utilization": round(busy, 2), "power_w": round(600 * busy, 1)}
            times = BUSY | {"evaluation": evaluating, "compute": 4.4 - evaluating}
            free = 210 * GIB - int((due - recorded.START) * 2**24)
            yield sample(time=due, step=event.step, times=times, gpus={"uuid-0": gpu},
                         disk_free=free, cpu=round(0.3 + 0.1 * rng.random(), 3))  # fmt: skip
            due, evaluating = due + 5, 0.0
        yield event
        if isinstance(event, events.Eval):
            evaluating = event.seconds


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampled") / "small-shakespeare"
    folder.mkdir()
    with EventWriter(folder / "events.jsonl") as write:
        for event in with_samples(recorded.recorded_events()):
            write(event)
    return folder


@pytest.mark.parametrize("size", [(200, 60), *SIZES], ids=lambda s: f"{s[0]}x{s[1]}")
async def test_the_page_looks_as_before(sampled: Path, size: tuple[int, int]) -> None:
    async with opened(load(sampled), size, page="system") as pilot:
        path = SNAPSHOTS / f"system-{size[0]}x{size[1]}.txt"
        if os.environ.get("NANOGPT_UPDATE_SNAPSHOTS"):
            path.write_text(screen(pilot), encoding="utf-8")
        assert screen(pilot) == path.read_text(encoding="utf-8"), f"{path.name} looks different"


async def test_keys_of_the_page(sampled: Path) -> None:
    async with opened(load(sampled), (80, 24)) as pilot:
        await press(pilot, "6")
        assert "why is it slow?" in screen(pilot)
        assert "CPU %" in screen(pilot)
        await press(pilot, "n")
        assert "CPU %" not in screen(pilot)
        await press(pilot, "d")
        assert "60.0 of 80.0 GiB" in screen(pilot)
        await press(pilot, "d", "p", "c", "H")
        assert "before the crosshair" in screen(pilot)
        await press(pilot, "escape", "question_mark")
        assert "share of the time in which any kernel ran" in screen(pilot)


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_ascii_and_every_width(sampled: Path, size: tuple[int, int]) -> None:
    async with opened(load(sampled), size, ascii_only=True, page="system") as pilot:
        assert screen(pilot).isascii()
        await pilot.resize_terminal(41, 12)
        await settle(pilot)
        assert screen(pilot).isascii()


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ({"system_every": 0}, "log.system_every = 0"),
        ({"system_every": 5.0}, "ended before the first sample"),
        ({}, "an earlier version"),
        ("nonsense", "an earlier version"),
    ],
)  # fmt: skip
async def test_a_run_without_samples_says_so(tmp_path: Path, log: Any, said: str) -> None:
    with EventWriter(tmp_path / "events.jsonl") as write:
        write(events.RunStarted(name="x", recipe={"log": log}, time=recorded.START))
        write(events.RunEnded(step=0, reason="finished", time=recorded.START))
    async with opened(load(tmp_path), (80, 24), page="system") as pilot:
        text = " ".join(screen(pilot).replace("│", " ").split())
        assert said in text
        assert "CPU" not in text


def view_of(*samples: events.System, **started: Any) -> RunView:
    view = RunView("x")
    view.fold(events.RunStarted(name="x", time=recorded.START, **started))
    for event in samples:
        view.fold(event)
    return view


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "held back: power cap"),
        ({"gpus": {"0": GPU | {"throttled": []}}}, "Nothing is in the way: 96% of the time"),
        ({"gpus": {"0": {"utilization": 0.2}}}, "raise train.batch_size"),
        ({"times": {"data": 3.0, "compute": 2.0}}, "Fetching data takes 60% of the time"),
        ({"times": {"evaluation": 3.0, "compute": 2.0}}, "larger train.eval_every"),
        ({"times": {"checkpoint": 3.0, "compute": 2.0}}, "larger train.checkpoint_every"),
        ({"times": {"sample": 3.0, "compute": 2.0}}, "sample.max_new_tokens"),
        ({"times": {"statistics": 1.0, "compute": 4.0}}, "stats.budget"),
        ({"times": {"paused": 5.0}}, "P resumes it"),
        ({"times": {"other": 4.0, "compute": 1.0}}, "neither a step nor an evaluation"),
        ({"gpus": {}, "process_cpu": 7.5, "cpu": 0.95}, "on 7.5 of 8 cores"),
        ({"gpus": {}, "process_cpu": 1.0, "cpu": 0.14}, "OMP_NUM_THREADS"),
        ({"gpus": {}, "process_cpu": 2.0, "cpu": 0.9}, "Other programs keep about 5.2 cores busy"),
        ({"gpus": {}, "process_cpu": None, "cores": None}, "96% of the time is forward"),
        ({"times": {}}, ""),
        ({"times": {"compute": "much"}, "gpus": {"0": "none"}}, ""),
    ],
)  # fmt: skip
def test_why_it_is_slow(changed: dict[str, Any], said: str) -> None:
    answer = slowness.answer(view_of(sample(**changed)))
    assert said in answer
    assert bool(said) == bool(answer)


def test_the_parts_are_the_trainers_and_each_has_its_look() -> None:
    assert PARTS == step_times.PARTS
    assert list(system_panes._LOOKS) == list(PARTS)
    signs = [words.plain(sign) for _, sign, _ in system_panes._LOOKS.values()]
    assert len(set(signs)) == len(signs)


def test_the_bar_has_the_shares_and_fills_its_width() -> None:
    spent = {"data": 1.0, "compute": 2.0, "other": 1.0}
    for width in range(4, 90):
        assert sum(len(text) for text, _ in system_panes.bar(spent, width)) == width
    assert [len(text) for text, _ in system_panes.bar(spent, 40)] == [10, 20, 10]


def test_a_sample_lies_where_its_time_does_and_goes_with_its_steps() -> None:
    view = RunView("x")
    view.fold(events.RunStarted(name="x", time=100.0))
    for step in range(1, 5):
        view.fold(events.Step(step=step, loss=1.0, lr=1.0, grad_norm=1.0, tokens=step * 10,
                              tokens_per_s=10.0, step_s=1.0, time=100.0 + step))  # fmt: skip
        view.fold(sample(step=step, time=100.0 + step - 0.5))  # written half a second late
    (machine, *_) = traces(view, CHARTS[0], "step")
    assert machine.x.tolist() == [1.0, 1.5, 2.5, 3.5]
    (machine, *_) = traces(view, CHARTS[0], "time")
    assert machine.x.tolist() == [0.5, 1.5, 2.5, 3.5]
    view.fold(events.RunStarted(name="x", step=2, time=110.0))
    assert len(view.machine) == 2
    assert view.last_time == 110.0
    assert len(view.machine.gpus["uuid-0"]) == 2


def test_a_long_history_is_thinned_and_a_hostile_one_bounded() -> None:
    history = MachineHistory(most=64)
    for index in range(1000):
        history.append(sample(step=index, gpus={str(index): GPU}), float(index))
    assert len(history) <= 64
    assert len(history.gpus) <= 64
    assert history["step"][-1] == 999


def test_samples_with_foreign_content_are_drawn_as_unknown() -> None:
    view = view_of(sample(gpus={"\x1b[31m": {"utilization": "NaN", "name": "\x1b]0;x"}},
                          times={"compute": True, "nonsense": 5}, cpu=float("nan")))  # fmt: skip
    assert "\x1b" not in "".join(view.machine.gpus)
    assert not np.isfinite(view.machine["cpu"]).any()
    assert traces(view, CHARTS[4], "step") == []


def test_the_header_names_the_gpu_or_else_the_cpu_where_there_is_room() -> None:
    state = State("running", "ok", live=True)
    text = "".join(t for t, _ in header.header(view_of(sample()), state, 120))
    assert "GPU 97% 75% mem" in text
    text = "".join(t for t, _ in header.header(view_of(sample(gpus={})), state, 120))
    assert "CPU 31%" in text
    assert "CPU" not in "".join(t for t, _ in header.header(view_of(sample()), state, 20))


async def test_the_machine_alone_has_one_page(tmp_path: Path) -> None:
    now = [1000.0]
    gpus = Nvml(library=Replay())

    def take() -> dict[str, Any]:
        known = vars(sample()) | {"gpus": gpus.read()}
        return {key: known[key] for key in known if key not in ("time", "step", "times", "steps")}

    session = MachineSession(take, clock=lambda: now[0])
    app = machine_dashboard(session, live=False)
    app.animation_level = "none"
    async with app.run_test(size=(100, 30)) as pilot:
        for _ in range(3):
            session.poll()
            assert not session.poll()  # not yet
            now[0] += 1.0
        await settle(pilot)
        app.draw(force=True)
        await settle(pilot)
        text = screen(pilot)
        assert "NVIDIA" not in text  # cards are numbered
        assert "12% busy" in text
        assert "power cap" not in text  # it was, one sample ago
        assert "trainer" not in text
        assert "Overview" not in text
        await press(pilot, "1", "5")
        assert dashboard(pilot).page.id == "system"
        await press(pilot, "question_mark")
        assert app.is_running
    assert not keys.offered(keys.KEYS[0], "system", True, ("system",))


async def test_impossible_numbers_are_drawn_as_unknown(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as write:
        write(events.RunStarted(name="x", time=recorded.START))
        odd = {"memory_used": -1, "memory_total": 0, "rss": -1, "cores": 0, "disk_free": -1}
        gpus = {"a": {"utilization": -3}}
        write(sample(seconds=-4.0, cpu=-3.0, times={"data": -5.0}, gpus=gpus, **odd))
        write(sample(time=1.0, step=-3, times={}, gpus={"a": [1], "b": {"throttled": [3, None]}}))
    async with opened(load(tmp_path), page="system") as pilot:
        assert "-" not in screen(pilot)
        assert "no training is timed here" in screen(pilot)
