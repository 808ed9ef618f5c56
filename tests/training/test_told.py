"""A run that tells how it goes: the training is the same, whatever the server does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_run
from toy_run import of_type, recipe
from webhook import MODES, SECRET, Webhook, serving

from nanogpt_cli.run import events, notify, post
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.training.drive import drive
from nanogpt_cli.training.trainer import Trainer


@pytest.fixture(autouse=True)
def many_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step raises two kinds of alarm anew."""
    run = Trainer.run

    def stormy(self: Trainer) -> Iterator[events.Event]:
        for event in run(self):
            yield event
            if isinstance(event, events.Step):
                for kind in ("always_clipped", "slow"):
                    yield events.Alarm(time=event.time, step=event.step, kind=kind,
                                       severity="warning", message=f"{kind} at {event.step}",
                                       layer=event.step)  # fmt: skip

    monkeypatch.setattr(Trainer, "run", stormy)


def trained(folder: Path, address: str = "") -> tuple[RunFolder, list[events.Event], list[str]]:
    """A run, its events, and what it reported."""
    data, run = toy_run.data(folder.parent), toy_run.folder(folder)
    wanted = recipe(log={"notify": address}, train={"eval_every": 0, "checkpoint_every": 0})
    said: list[str] = []
    start = lambda: Trainer(wanted, data, run)  # noqa: E731
    told = list(drive(run, wanted, start, resume=False, report=said.append))
    return run, told, said


def losses(told: list[events.Event]) -> list[tuple[int, float]]:
    return [(e.step, e.loss) for e in of_type(told, events.Step)]


@pytest.fixture(scope="module")
def untold(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    return losses(trained(tmp_path_factory.mktemp("untold") / "toy")[1])


def test_alarms_once_a_kind_and_the_end(tmp_path: Path, untold: list[tuple[int, float]]) -> None:
    with serving() as hook:
        run, told, said = trained(tmp_path / "toy", hook.address)
    assert losses(told) == untold
    assert hook.texts[:2] == ["toy: step 1: warning: always_clipped at 1",
                              "toy: step 1: warning: slow at 1"]  # fmt: skip
    assert hook.texts[2].startswith("toy: finished after 12 steps, best val loss ")
    assert len(hook.texts) == 3
    assert not said
    assert_secret(hook, run)


@pytest.mark.parametrize("mode", MODES)
def test_a_bad_server_changes_nothing_and_is_named_once(
    mode: str, tmp_path: Path, untold: list[tuple[int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "silent":
        monkeypatch.setattr(notify, "LAST_S", 0.01)
    with serving(mode) as hook:
        run, told, said = trained(tmp_path / "toy", hook.address)
    assert losses(told) == untold
    notes = [e.message for e in of_type(told, events.Note) if "notifying" in e.message]
    assert len(notes + said) == 1, "as a note, or on the terminal if the run had ended"
    assert (notes + said)[0].startswith("notifying http://127.0.0.1:")
    assert_secret(hook, run, *said)


def assert_secret(hook: Webhook, run: RunFolder, *said: str) -> None:
    """The address is nowhere in the run folder, checkpoints and incidents included."""
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert run.events in files
    assert any(b"127.0.0.1" in path.read_bytes() for path in files), "its host is recorded"
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert not any(SECRET in text for text in said)


def test_a_crash_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(self: Trainer) -> Iterator[events.Event]:
        raise ArithmeticError("one and one is three")
        yield

    monkeypatch.setattr(Trainer, "run", breaks)
    with serving() as hook, pytest.raises(ArithmeticError):
        trained(tmp_path / "toy", hook.address)
    assert hook.texts == ["toy: failed after 0 steps: ArithmeticError: one and one is three"]


def test_who_goes_on_without_the_address_is_told_so(tmp_path: Path) -> None:
    _, _, said = trained(tmp_path / "toy", "https://hooks.example.com/…")
    assert said == [
        "nobody is told: of log.notify only https://hooks.example.com/… is recorded; the whole URL "
        "belongs into the environment, NANOGPT_NOTIFY"
    ]


def test_the_time_limit_is_short() -> None:
    assert notify.LAST_S <= 2
    assert post.TIMEOUT_S <= 5
