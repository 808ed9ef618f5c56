"""Summaries by the ends of logs say what the whole log says, as ``RunView`` folds it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanogpt_cli.run import events, summaries
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.run.summaries import Summary
from nanogpt_cli.tui.state.session import RunSession


def step(number: int, loss: float = 2.0) -> events.Step:
    return events.Step(step=number, loss=loss, lr=1e-3, grad_norm=1.0, tokens=number,
                       tokens_per_s=5.0, step_s=0.1, time=float(number))  # fmt: skip


def write(folder: Path, found: list[events.Event]) -> RunFolder:
    run = RunFolder(folder)
    with EventWriter(run.events) as log:
        for event in found:
            log(event)
    return run


def searched(summary: Summary, piece: int = 1 << 20) -> Summary:
    for _ in range(100_000):
        if summary.search(piece):
            break
    assert summary.complete
    return summary


kinds = st.sampled_from(["step"] * 6 + ["eval", "alarm", "clear", "pause", "resume", "sample",
                                        "beat", "start", "end"])  # fmt: skip


def log_of(drawn: list[tuple[str, float]]) -> list[events.Event]:
    """A log that a trainer could have written."""
    found: list[events.Event] = [events.RunStarted(name="r", time=1.0, recipe={"a": {"b": 1}})]
    number = 0
    for kind, value in drawn:
        if kind == "step":
            number += 1
            found.append(step(number, value))
        elif kind == "start":
            number = int(number * abs(value) / 10)
            found.append(events.RunStarted(name="r", step=number, time=float(number)))
        elif kind in ("alarm", "clear"):
            found.append(events.Alarm(step=number, kind="stuck", severity="warning", message="m",
                                      active=kind == "alarm"))  # fmt: skip
        elif kind in ("pause", "resume"):
            found.append(events.Command(step=number, name=kind))
        elif kind == "eval":
            found.append(events.Eval(step=number, val_loss=value))
        elif kind == "sample":
            found.append(events.Sample(step=number, prompt='{"type":"eval"', text="x" * 300))
        elif kind == "beat":
            found.append(events.Heartbeat(step=number, doing="evaluate"))
        else:
            found.append(events.RunEnded(step=number, reason="stopped"))
    return found


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(kinds, st.floats(0, 10)), max_size=60),
    st.integers(150, 2000),
    st.integers(20, 3000),
    st.integers(0, 60),
)
@example([("alarm", 0.0), ("step", 0.0), ("alarm", 0.0), ("start", 0.0)], 150, 20, 0)
@example([("step", 0.0)] * 3 + [("end", 0.0), ("sample", 0.0)], 290, 20, 6)
@example([("step", 0.0)] * 5 + [("eval", 0.0)] * 2, 290, 20, 8)  # no step in the end of the log
def test_a_summary_says_what_the_view_says(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[str, float]],
    end: int,
    piece: int,
    cut: int,
) -> None:
    """Whatever the size of what is read at once, and read while it grows or afterwards."""
    found = log_of(drawn)
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summaries, "END", end)
        summary = Summary(write(folder, found[:cut]))
        summary.refresh()
        write(folder, found[cut:])
        for _ in range(1000):
            if not summary.refresh(piece):
                break
        searched(summary, piece)
    session = RunSession(folder)
    session.poll()
    view = session.view
    assert summary.best == view.best_val_loss
    assert [a.kind for a in summary.alarms] == [a.kind for a in view.active_alarms]
    assert (summary.ended is None) == (view.ended is None)
    assert (summary.paused, summary.stopping) == (view.paused, view.stopping)
    last = [event for event in found if isinstance(event, events.Step | events.RunStarted)][-1]
    if isinstance(last, events.Step):
        assert summary.step == view.step == last.step
        assert summary.last_step == last
        assert summary.points[-1] == (last.step, last.loss)
    steps = [number for number, _ in summary.points]
    assert steps == sorted(set(steps))


def test_a_long_log_is_known_by_its_ends(tmp_path: Path) -> None:
    """Without reading the middle, which then gives the exact minimum."""
    made: list[events.Event] = [events.RunStarted(name="r", time=5.0, max_steps=9000)]
    for number in range(1, 9001):
        made.append(step(number, 9000 / number))
        if number in (4000, 8999):
            made.append(events.Eval(step=number, val_loss=number / 1000))
    summary = Summary(write(tmp_path, made))
    assert summary.refresh()
    assert not summary.refresh()
    assert (summary.step, summary.began, summary.speed) == (9000, 5.0, 5.0)
    assert summary.best == 8.999
    assert not summary.best_is_exact
    assert len(summary.points) > 15
    assert summary.points[0][0] < 500
    assert searched(summary).best == 4.0
    assert summary.best_is_exact
    assert summary.step == 9000
    write(tmp_path, [step(9001), events.RunEnded(step=9001, reason="finished", best_val_loss=1.0)])
    assert summary.refresh()
    assert summary.ended is not None
    assert summary.best == 4.0


def test_a_replaced_log_is_read_anew(tmp_path: Path) -> None:
    summary = Summary(write(tmp_path, [events.RunStarted(name="r"), step(50)]))
    summary.refresh()
    summary.run.events.unlink()
    write(tmp_path, [events.RunStarted(name="r"), step(2)])
    summary.refresh()
    assert summary.step == 2


def test_what_is_no_log_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.jsonl")
    summary = Summary(RunFolder(tmp_path))
    summary.refresh()
    assert "named pipe" in summary.problem
    assert summary.search()


CUT = b'{"type":"eval"}\n{"type":"step","time":1,"step":5,"loss":'


@pytest.mark.parametrize("data", [b"", b"\n", b"x" * 70_000, b"{}\n" * 40_000, b"\xff\n", CUT])
def test_a_broken_log_does_no_harm(tmp_path: Path, data: bytes) -> None:
    run = RunFolder(tmp_path)
    run.events.write_bytes(data)
    summary = Summary(run)
    summary.refresh()
    searched(summary)
    assert (summary.best, summary.step, summary.alarms) == (None, 0, [])


def test_a_log_of_another_writer_is_read_as_ours(tmp_path: Path) -> None:
    """With spaces after its colons, as ``json.dumps`` writes them by default."""
    found = log_of([("step", 3.0), ("eval", 2.0), ("step", 2.5)] * 600)
    ours = Summary(write(tmp_path / "ours", found))
    folder = tmp_path / "theirs"
    folder.mkdir()
    text = "".join(json.dumps(json.loads(events.encode(event))) + "\n" for event in found)
    (folder / "events.jsonl").write_text(text)
    theirs = Summary(RunFolder(folder))
    for summary in (ours, theirs):
        summary.refresh()
        searched(summary)
    assert (theirs.step, theirs.best, theirs.last_step) == (1200, 2.0, ours.last_step)
    assert len(theirs.points) > 10
