"""Broken, odd and vanishing logs: shown calmly, never a traceback."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import clock, dashboard, load, look, opened, press, screen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import START, recorded_events

from nanogpt_cli.run import events
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.tui.state.session import RunSession
from nanogpt_cli.tui.state.view import RunView

ALL_PAGES = "12345"


def log_of(folder: Path, found: Iterator[events.Event] | list[events.Event]) -> Path:
    with EventWriter(folder / "events.jsonl") as write:
        for event in found:
            write(event)
    return folder


async def every_page(session: RunSession) -> list[str]:
    shown = []
    async with opened([session]) as pilot:
        for key in ALL_PAGES:
            await press(pilot, key)
            shown.append(screen(pilot))
    return shown


def step(number: int, **changes: object) -> events.Step:
    values = {"time": START + number, "step": number, "loss": 2.0, "lr": 1e-3, "grad_norm": 1.0,
              "tokens": number * 10, "tokens_per_s": 10.0, "step_s": 1.0}  # fmt: skip
    return events.Step(**{**values, **changes})  # type: ignore[arg-type]


async def test_half_written_last_line_waits_for_its_rest(tmp_path: Path) -> None:
    path = log_of(tmp_path, [step(1), step(2)]) / "events.jsonl"
    line = events.encode(step(3)) + "\n"
    with path.open("a") as log:
        log.write(line[:40])
    session = load(tmp_path)[0]
    assert session.view.step == 2
    assert session.problems() == ""
    with path.open("a") as log:
        log.write(line[40:])
    session.poll()
    assert session.view.step == 3
    assert session.problems() == ""


async def test_garbage_newer_events_and_odd_values_are_counted(tmp_path: Path) -> None:
    path = log_of(tmp_path, list(recorded_events(200))) / "events.jsonl"
    with path.open("ab") as log:
        log.write(b'\x00\xff\xfe garbage\n[1,2]\n{"type":"step"}\n{}\nnull\n\n')
        log.write(b'{"type":"hologram","time":1,"step":201,"depth":3}\n')
        log.write(b'{"type":"step","time":1,"step":"many","loss":[],"lr":{},"grad_norm":1,'
                  b'"tokens":1,"tokens_per_s":1}\n')  # fmt: skip
        log.write(b'{"type":"layers","time":1,"step":210,"stats":{"dead":"all","x":[[1]],"y":[1,"a"],'
                  b'"attn_rms":[0.1,"NaN",null]},"histograms":{"weights":[1]}}\n')  # fmt: skip
        log.write(b'{"type":"layers","time":1,"step":220,"stats":[],"histograms":7}\n')
        log.write(b'{"type":"eval","time":1,"step":230,"val_loss":"NaN"}\n')
        log.write(
            b'{"type":"sample","time":1,"step":230,"prompt":"\\u001b[2J","text":"\\u0007\\u202e"}\n'
        )
        log.write((events.encode(step(240)) + "\n").encode())
    session = load(tmp_path)[0]
    assert session.view.step == 240
    assert "unreadable lines skipped: " in session.problems()
    assert "events of an unknown kind skipped: 1" in session.problems()
    for shown in await every_page(session):
        assert "\x1b" not in shown
        assert "\x07" not in shown


async def test_truncated_and_replaced_logs_are_read_again(tmp_path: Path) -> None:
    path = log_of(tmp_path, list(recorded_events(300))) / "events.jsonl"
    session = load(tmp_path)[0]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:51]))
    session.poll()
    assert session.view.step == json.loads(lines[50])["step"]
    path.rename(path.with_suffix(".old"))
    log_of(tmp_path, list(recorded_events(120, name="other")))
    session.poll()
    assert session.view.step == 120
    assert "the log was replaced and read again: 2" in session.problems()
    assert "read again" in (await every_page(session))[4]


async def test_folder_deleted_underneath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the picture is saved without the folder
    folder = tmp_path / "run"
    folder.mkdir()
    log_of(folder, list(recorded_events(300)))
    session = load(folder)[0]
    async with opened([session]) as pilot:
        shutil.rmtree(folder)
        look(pilot)
        await press(pilot, "5", "1")
        assert "folder gone" in screen(pilot)
        assert "loss 2.0725" in screen(pilot)  # what was read stays
        await press(pilot, "e")
        assert dashboard(pilot).is_running
        log_of(folder, list(recorded_events(100)))
        look(pilot)
        await press(pilot, "1")
        assert "step 100/" in screen(pilot)


def test_clock_that_jumps_leaves_the_time_axis_in_order() -> None:
    view = RunView()
    times = [0, 1, 2, 3, -86_400, -86_399, 86_400 * 365, 86_400 * 365 + 1, math.nan, 5]
    view.fold_many([step(i + 1, time=START + t) for i, t in enumerate(times)])
    elapsed = view.steps["time"]
    assert (elapsed[1:] >= elapsed[:-1]).all()
    assert elapsed[-1] <= 2 * len(times)


def test_resume_repeats_steps_without_doubling_them() -> None:
    view = RunView()
    view.fold_many([step(i) for i in range(1, 101)])
    view.steps.smooth("loss", 0.9)
    view.fold(events.Eval(step=100, val_loss=1.0))
    view.fold(events.RunStarted(name="r", step=50, time=START + 9999))
    assert view.steps["step"][-1] == 50
    assert len(view.evals) == 0
    view.fold_many([step(i, loss=3.0, time=START + 10_000 + i) for i in range(51, 61)])
    assert view.steps["step"].tolist() == list(range(1, 61))
    assert len(view.steps.smooth("loss", 0.9)) == 60
    assert view.steps["time"][-1] < 100  # the break is not training


def test_steps_out_of_order_are_left_out_and_counted() -> None:
    view = RunView()
    view.fold_many([step(1), step(2), step(2), step(1), step(3)])
    assert view.steps["step"].tolist() == [1, 2, 3]
    assert view.steps.out_of_order == 2


lines = st.one_of(
    st.binary(max_size=60).map(lambda b: b.replace(b"\n", b"")),
    st.sampled_from([events.encode(e).encode() for e in recorded_events(60, layers=2)]),
    st.sampled_from([events.encode(e).encode()[:-9] for e in recorded_events(30, layers=2)]),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=4,
    ).flatmap(
        lambda value: st.sampled_from(
            ["step", "stats", "loss", "histograms", "recipe", "expected", "severity", "text"]
        ).map(
            lambda field: json.dumps(
                {"type": "layers", "step": 1, "stats": {}, "time": 0.0, field: value}
            ).encode()
        )
    ),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)  # fmt: skip
@given(st.lists(lines, max_size=25), st.integers(1, 400))
def test_any_file_is_read_without_an_error(tmp_path: Path, found: list[bytes], piece: int) -> None:
    """In small pieces and at once, both readings give the same view."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(found))
    slow, fast = RunSession(tmp_path, clock=clock), RunSession(tmp_path, clock=clock)
    for _ in range(len(path.read_bytes()) // piece + 2):
        slow.view.fold_many(slow.reader.read(piece, math.inf))
    fast.poll(1 << 22, math.inf)
    assert slow.view.steps["step"].tolist() == fast.view.steps["step"].tolist()
    assert len(slow.view.layers) == len(fast.view.layers)
    assert slow.view.step == fast.view.step


@pytest.mark.parametrize("word", ["waiting", "starting"])
async def test_the_first_three_seconds(tmp_path: Path, word: str) -> None:
    started = list(recorded_events(0))[:1] if word == "starting" else []
    (tmp_path / "events.jsonl").touch()
    log_of(tmp_path, started)
    session = RunSession(tmp_path, clock=lambda: START + 2)
    session.poll()
    shown = await every_page(session)
    assert word in shown[0].splitlines()[0]
    said = "waiting for the trainer" if word == "waiting" else "10.8M parameters on cuda: H100"
    assert said in shown[0]
    assert "none yet" in shown[3]
    assert "nothing has happened yet" in shown[4]
