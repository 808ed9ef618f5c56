"""Event files of TensorBoard as runs: other programs' tags, restarts, growth, and damage."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import TypeVar

import pytest
from event_logs import START, Writer, write

from nanogpt_cli import extras
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import converted, event_files, events, sinks, tags
from nanogpt_cli.run.converted import Converted
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.tui.state.session import RunSession

T = TypeVar("T", bound=events.Event)


def opened(root: Path) -> tuple[Converted, list[str]]:
    said: list[str] = []
    found = Converted(root, said.append)
    found.update()
    return found, said


def logged(run: RunFolder, kind: type[T]) -> list[T]:
    return [event for event in EventReader(run.events).read_all() if isinstance(event, kind)]


def read(root: Path) -> RunSession:
    """The only run of a folder, as the dashboard reads it."""
    (run,) = opened(root)[0].runs
    session = RunSession(run.path)
    session.poll(1 << 22, float("inf"))
    assert session.problems() == ""
    return session


OURS = (
    events.Step(step=1, loss=4.25, lr=0.5, grad_norm=2.0, tokens=64, tokens_per_s=32.0, time=START),
    events.Layers(step=1, stats={"resid_rms": [1.5, 2.5], "dead": [0.0, math.nan]}, time=START),
    events.Step(step=2, loss=math.nan, lr=0.25, grad_norm=math.inf, tokens=128, tokens_per_s=64.0,
                time=START + 2.0),
    events.Eval(step=2, val_loss=3.5, bits_per_byte=5.0, time=START + 2.5),
)  # fmt: skip


def test_our_own_sink_comes_back_with_the_same_values(tmp_path: Path) -> None:
    ours = RunFolder(tmp_path / "small")
    ours.path.mkdir()
    with sinks.opened(["tensorboard"], ours) as (take,):
        for event in OURS:
            take(event)
    (run,) = opened(ours.path / "tensorboard")[0].runs
    begin, *back = EventReader(run.events).read_all()
    assert isinstance(begin, events.RunStarted)
    back = [event for event in back if not isinstance(event, events.Note)]
    assert [event.type for event in back] == [event.type for event in OURS]
    for old, new in zip(OURS, back, strict=True):
        assert sinks.scalars(new) == pytest.approx(sinks.scalars(old), nan_ok=True)
        assert new.time == old.time, "wall times are kept"


def test_every_other_tag_is_a_metric(tmp_path: Path) -> None:
    rows = [(s, {"loss": 4.0 - s / 10, "rollout/reward": s * 2.0}) for s in range(0, 30, 3)]
    rows += [(30, {"eval/accuracy": 0.5})]
    with Writer(tmp_path / "log", tensors=True) as writer:
        for step, values in rows:
            writer.put(step, values)
        writer.picture(31)
    view = read(tmp_path / "log").view
    assert view.steps["loss"].tolist() == pytest.approx([4.0 - s / 10 for s in range(0, 30, 3)])
    assert view.scalars.tags() == ["eval/accuracy", "rollout/reward"]
    assert view.scalars.steps("rollout/reward").tolist() == list(range(0, 30, 3))
    assert view.scalars.values("rollout/reward").tolist() == [s * 2.0 for s in range(0, 30, 3)]
    assert view.scalar_axis("rollout/reward", "time")[-1] == pytest.approx(27.0, abs=1)


@pytest.mark.parametrize(
    ("logged", "wanted"),
    [
        ("train/loss train/learning_rate train/grad_norm eval/loss train/train_loss",  # HF Trainer
         "loss lr grad_norm val_loss"),
        ("train_loss_step train_loss_epoch val_loss lr-AdamW epoch", "loss val_loss lr"),
        ("loss learning_rate val_loss total_tokens", "loss lr val_loss tokens"),  # LitGPT
        ("loss_metrics/global_avg_loss grad_norm lr throughput(tps)",  # torchtitan
         "loss grad_norm lr tokens_per_s"),
        ("lm loss|learning-rate|grad-norm|lm loss validation|lm loss vs samples",  # Megatron-LM
         "loss lr grad_norm val_loss"),
        ("Loss/train Loss/val", "loss val_loss"),
        ("rollout/ep_rew_mean time/fps", ""),
    ],
)  # fmt: skip
def test_tags_of_other_programs(logged: str, wanted: str) -> None:
    names = logged.split("|") if "|" in logged else logged.split()
    found = tags.metrics(names)
    assert set(found) == set(wanted.split())
    assert set(found.values()) <= set(names)
    if "train/loss" in names:
        assert found["loss"] == "train/loss"


def test_a_learning_rate_logged_at_other_steps_is_not_lost(tmp_path: Path) -> None:
    write(tmp_path, [(s, {"lr": s / 8} | ({"loss": 2.0} if s % 4 == 0 else {})) for s in range(9)])
    view = read(tmp_path).view
    assert view.steps["lr"].tolist() == [0.0, 0.5, 1.0]
    assert view.scalars.values("lr").tolist() == [s / 8 for s in range(9)]


def test_runs_are_folders_as_in_tensorboard(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "events.jsonl").touch()
    for name in ("a/train", "a-train", ".", "b", "ours/tensorboard"):
        write(tmp_path / name, [(1, {"loss": 1.0})])
    (tmp_path / "b" / "notes.txt").write_text("x")
    found = opened(tmp_path)[0].runs
    names = sorted(run.name for run in found)
    assert names == sorted(["a-train", "a-train-2", "b", tmp_path.name])
    alone = Converted(tmp_path / "b", print)
    alone.update()
    assert [run.name for run in alone.runs] == ["b"]


def test_a_run_that_was_started_again_counts_repeated_steps_once(tmp_path: Path) -> None:
    write(tmp_path, [(s, {"loss": 5.0}) for s in range(10)])
    write(tmp_path, [(s, {"loss": 3.0}) for s in range(6, 12)], suffix=".again")
    found, said = opened(tmp_path)
    view = read_of(found)
    assert view.steps["step"].tolist() == list(range(12))
    assert view.steps["loss"].tolist() == [5.0] * 6 + [3.0] * 6
    assert said == ["steps went back; values that were logged again: 4"]


def read_of(found: Converted) -> object:
    session = RunSession(found.runs[0].path)
    session.poll(1 << 22, float("inf"))
    return session.view


def test_growth_is_followed_without_losing_or_repeating(tmp_path: Path) -> None:
    with Writer(tmp_path / "log") as writer:
        for step in range(5):
            writer.put(step, {"loss": 4.0, "a": float(step)})
        writer.flush()
        found, _ = opened(tmp_path)
        session = RunSession(found.runs[0].path)
        session.poll()
        assert session.view.step == 4
        for step in range(5, 9):
            writer.put(step, {"loss": 3.0})
            writer.flush()
            writer.put(step, {"a": float(step)})
            writer.flush()
            found.update()
            session.poll()
        for _ in range(2):  # the newest step waits until the file rests
            found.update()
        session.poll()
        assert session.restarts == 0, "the log was appended to"
        writer.put(9, {"loss": 2.0, "val_loss": 2.5})
        writer.flush()
        write(tmp_path / "later", [(1, {"b": 1.0})])
        for _ in range(2):
            found.update()
        session.poll(1 << 22, float("inf"))
    assert len(found.runs) == 2
    view = session.view
    assert view.steps["step"].tolist() == list(range(10))
    assert view.scalars.values("a").tolist() == [float(s) for s in range(9)]
    assert view.best_val_loss == 2.5
    assert view.steps.out_of_order == 0


def test_following_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converted, "PAUSE_S", 0.001)
    write(tmp_path / "log", [(1, {"loss": 1.0})])
    calls, again = [], threading.Event()

    def update(self: Converted) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise UserError("the disk is full")
        again.set()

    found = Converted(tmp_path, print)
    monkeypatch.setattr(Converted, "update", update)
    found.follow()
    assert again.wait(60)
    found.close()


def test_what_has_not_changed_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "log", [(1, {"loss": 1.0})])
    opened(tmp_path)
    monkeypatch.setattr(event_files.RunFiles, "read", None)
    assert read(tmp_path).view.step == 1


def test_only_one_program_converts(tmp_path: Path) -> None:
    write(tmp_path / "log", [(1, {"loss": 1.0})])
    first, _ = opened(tmp_path)
    second, _ = opened(tmp_path)
    write(tmp_path / "log", [(2, {"loss": 0.5})], suffix=".more")
    second.update()
    assert [run.path for run in second.runs] == [run.path for run in first.runs]
    assert read_of(second).step == 1
    for _ in range(2):  # the newest step waits until the file rests
        first.update()
    assert read_of(second).step == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage", "empty", "pipe", "huge"])
def test_of_a_broken_file_the_rest_is_shown_and_the_break_said(damage: str, tmp_path: Path) -> None:
    path = write(tmp_path / "log", [(s, {"loss": 4.0}) for s in range(20)])
    whole = path.read_bytes()
    size = len(whole) // 2 + 5
    if damage == "cut":
        path.write_bytes(whole[:size])
    elif damage == "flipped":
        path.write_bytes(whole[:size] + bytes([whole[size] ^ 1]) + whole[size + 1 :])
    elif damage == "huge":
        path.write_bytes(whole[:size] + b"\xff" * 40)
    else:
        other = path.with_name("events.out.tfevents.other")
        if damage == "pipe":
            os.mkfifo(other)
        else:
            other.write_bytes(b"not an event file at all" * (damage == "garbage"))
    found, said = opened(tmp_path)
    view = read_of(found)
    kept = 20 if damage in ("garbage", "empty", "pipe") else 9
    assert kept <= len(view.steps) <= 20
    assert len(said) == (damage != "empty")
    assert all("tfevents" in text for text in said)
    notes = logged(found.runs[0], events.Note)
    assert [note.message for note in notes if note.level == "warning"] == said


def test_steps_and_times_beyond_reason_are_left_out(tmp_path: Path) -> None:
    with Writer(tmp_path / "log") as writer:
        writer.put(-5, {"loss": 1.0})
        writer.put(2**62, {"loss": 1.0})
        writer.put(3, {"loss": 1.0}, at=math.nan)
        writer.put(4, {"loss": 1.5, "x\x1b[31m": 2.0})
    found, said = opened(tmp_path)
    view = read_of(found)
    assert view.steps["step"].tolist() == [4]
    assert view.scalars.tags() == ["x\\x1b[31m"]
    assert said[0].endswith("records that make no sense: 3")


def test_a_name_that_the_reader_cannot_take_is_said(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"na\xffme\x1b[31m")
    path = write(tmp_path / "log", [(1, {"loss": 1.0})])
    folder.mkdir()
    path.rename(folder / path.name)
    found, said = opened(folder)
    assert said[0].endswith("takes names in UTF-8 alone")
    session = RunSession(found.runs[0].path)
    session.poll()
    assert session.problems() == "", "what the log says of it can be read"


def test_a_missing_reader_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [(1, {"loss": 1.0})])
    monkeypatch.setattr(extras, "_installed", lambda name: name != "tensorboard")
    with pytest.raises(UserError) as raised:
        Converted(tmp_path, print)
    assert "nanogpt-cli[tensorboard]" in str(raised.value.hint)
