"""One way to drive a run: lock, log, sinks and the record of a crash, also through the API."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import toy_run
from toy_run import of_type, recipe

import nanogpt_cli as ng
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events, sinks
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.training.drive import drive
from nanogpt_cli.training.trainer import Trainer


def logged(run: RunFolder) -> list[events.Event]:
    return EventReader(run.events).read_all()


@pytest.fixture
def broken_sink(monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    """The csv sink breaks at the third step; what it was given, its closing included."""
    taken: list[events.Event] = []

    @contextlib.contextmanager
    def broken(run: RunFolder) -> Iterator[Callable[[events.Event], None]]:
        def take(event: events.Event) -> None:
            taken.append(event)
            if isinstance(event, events.Step) and event.step == 3:
                raise ConnectionError("the server\nis gone")

        yield take
        raise RuntimeError("cannot be closed either")

    monkeypatch.setitem(sinks._SINKS, "csv", broken)
    return taken


def test_a_sink_that_fails_is_left_out_and_the_run_goes_on(
    tmp_path: Path, broken_sink: list[events.Event]
) -> None:
    data, run = toy_run.data(tmp_path), toy_run.folder(tmp_path / "run")
    wanted = recipe(log={"sinks": ["csv"]})
    told = list(drive(run, wanted, lambda: Trainer(wanted, data, run), resume=False))
    assert isinstance(told[-1], events.RunEnded)
    assert told[-1].reason == "finished"
    (note,) = (e for e in of_type(told, events.Note) if e.level == "warning")
    assert note.message == (
        "the sink csv failed and is left out: ConnectionError: the server is gone"
    )
    assert of_type(broken_sink, events.Step)[-1].step == 3
    assert logged(run) == told


def test_the_api_keeps_the_sinks_the_lock_and_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_run.data(tmp_path)
    wanted = recipe(data={"name": str(tmp_path / "toy.txt")}, log={"sinks": ["csv"]})
    run = RunFolder(tmp_path / "runs" / "toy")
    told = ng.train(wanted, out=tmp_path / "runs")
    while not isinstance(next(told), events.Step):
        pass
    other = Trainer(wanted, toy_run.data(tmp_path), run)
    with pytest.raises(UserError, match="is being trained by another process"):
        next(drive(run, wanted, lambda: other, resume=True))
    told.close()
    (last,) = of_type(logged(run), events.RunEnded)
    assert (last.step, last.reason) == (1, "stopped")
    assert (run.path / "metrics.csv").read_text().splitlines()[1].startswith("1,")

    def breaks(self: Trainer) -> Iterator[events.Event]:
        raise ArithmeticError("one and one is three")
        yield

    monkeypatch.setattr(Trainer, "run", breaks)
    with pytest.raises(ArithmeticError):
        list(ng.train(wanted, out=tmp_path / "runs"))
    (last,) = of_type(logged(RunFolder(tmp_path / "runs" / "toy-2")), events.RunEnded)
    assert last.reason == "error"
    assert "one and one is three" in last.message
