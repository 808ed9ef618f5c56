"""Run folders, the event log's writer and follower, and command files."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.commands import send_command, take_commands
from nanogpt_cli.run.folder import RunFolder, find_run, fresh_run
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.run.log import EventWriter


def step(number: int) -> events.Step:
    return events.Step(
        step=number, loss=2.0, lr=1e-3, grad_norm=1.0, tokens=number, tokens_per_s=1.0
    )


def write(path: Path, found: list[events.Event]) -> Path:
    with EventWriter(path) as writer:
        for event in found:
            writer(event)
    return path


MIXED: list[events.Event] = [
    events.RunStarted(name="r"), step(1), step(2), events.Eval(step=2, val_loss=1.0), step(3),
    events.Note(message="ü"), step(4), step(5), events.RunEnded(step=5, reason="finished"),
]  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    reader = EventReader(write(tmp_path / "events.jsonl", MIXED))
    assert reader.read_all() == MIXED
    assert reader.read() == []
    assert reader.at_end()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 700), st.booleans())
def test_any_piece_size_gives_the_same_events(tmp_path_factory: pytest.TempPathFactory,
                                              piece: int, blocks: bool) -> None:  # fmt: skip
    """A torn line at the border of two readings is put together again."""
    path = write(tmp_path_factory.mktemp("log") / "events.jsonl", MIXED)
    reader = EventReader(path)
    found: list[events.Event] = []
    for _ in range(path.stat().st_size // piece + 2):
        if blocks:
            for item in reader.read_blocks(piece):
                found += reader.decode_lines(item) if isinstance(item, bytes) else [item]
        else:
            found += reader.read(piece, math.inf)
    assert found == MIXED
    assert reader.bad_lines == 0


def test_blocks_hold_consecutive_steps(tmp_path: Path) -> None:
    reader = EventReader(write(tmp_path / "events.jsonl", MIXED))
    shape = [
        item.count(b"\n") if isinstance(item, bytes) else item.type for item in reader.read_blocks()
    ]
    assert shape == ["run_started", 2, "eval", 1, "note", 2, "run_ended"]


def test_a_deadline_gives_the_rest_to_the_next_call(tmp_path: Path) -> None:
    reader = EventReader(write(tmp_path / "events.jsonl", MIXED))
    found: list[events.Event] = []
    for _ in range(len(MIXED)):
        some = reader.read(1 << 20, max_seconds=-1.0)
        assert len(some) <= 1
        found += some
    assert found == MIXED


def test_a_torn_line_waits_and_a_new_writer_cuts_it(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", MIXED[:2])
    with path.open("ab") as log:
        log.write(b'{"type":"step","st')
    reader = EventReader(path)
    assert reader.read_all() == MIXED[:2]
    write(path, [step(7)])
    assert EventReader(path).read_all() == [*MIXED[:2], step(7)]


def test_bad_and_unknown_lines_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", MIXED)
    with path.open("ab") as log:
        log.write(b'{"type":"later"}\nnonsense\n' + b"[" * 100_000 + b"\n\xff\xfe\n\n")
    reader = EventReader(path)
    assert reader.read_all() == MIXED
    assert (reader.bad_lines, reader.unknown) == (3, 1)


def test_a_shrunken_or_replaced_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", MIXED)
    reader = EventReader(path)
    reader.read_all()
    path.write_text(events.encode(step(1)) + "\n")
    assert reader.read() == [step(1)]
    assert reader.restarts == 1
    path.rename(tmp_path / "old")
    assert reader.read() == []
    assert reader.missing
    write(path, MIXED)
    assert reader.read() == MIXED
    assert reader.restarts == 2


def test_commands_arrive_in_order_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert take_commands(run) == []
    for name, argument in (("pause", ""), ("sample", "To be,\n"), ("lr", "0.5"), ("stop", "")):
        send_command(run, name, argument)
    assert take_commands(run) == [
        ("pause", ""), ("sample", "To be,\n"), ("lr", "0.5"), ("stop", ""),
    ]  # fmt: skip
    assert take_commands(run) == []
    with pytest.raises(UserError, match="unknown command 'halt'"):
        send_command(run, "halt")


def test_finding_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run"):
        find_run(None, tmp_path)
    first, second = fresh_run("small", tmp_path), fresh_run("small", tmp_path)
    assert second.name == "small-2"
    for run, when in ((first, 100), (second, 200)):
        write(run.events, MIXED)
        import os

        os.utime(run.events, (when, when))
    assert find_run(None, tmp_path).name == "small-2"
    assert find_run("small", tmp_path).path == first.path
    assert find_run(second.path, tmp_path).path == second.path
    with pytest.raises(UserError, match="no run 'smal'") as problem:
        find_run("smal", tmp_path)
    assert "did you mean 'small'" in problem.value.hint
    with pytest.raises(UserError, match="not usable"):
        fresh_run("../up", tmp_path)


@pytest.mark.parametrize(
    "name", ["notes", "Größe 2", "日本語", "my notes.v2", "a" * 200, "é", "100%", "it's", "a & b"]
)
def test_letters_of_any_script_and_spaces_make_a_name(tmp_path: Path, name: str) -> None:
    run = fresh_run(name, tmp_path)
    write(run.events, MIXED)
    assert run.name == name
    assert find_run(name, tmp_path).path == tmp_path / name
    assert fresh_run(name, tmp_path).name == f"{name}-2"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "it is empty"), ("a/b", "it holds '/'"), ("a\\b", "it holds"),
        ("a\nb", "cannot be shown"),
        ("..", "begins with '.'"), ("-x", "begins with '-'"), ("~x", "begins with '~'"),
        (" x", "begins with ' '"), ("x.", "ends with '.'"), ("x ", "ends with ' '"),
        ("NUL", "Windows"), ("com1.txt", "Windows"), ("ä" * 101, "202 bytes"),
        ("\u202ex", "cannot be shown"), ("\udcff", "cannot be shown"), ("a:b", "it holds ':'"),
    ],
)  # fmt: skip
def test_what_some_system_cannot_store_is_no_name(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(UserError, match=re.escape(why)):
        fresh_run(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_runs_that_are_listed_in_a_message_stay_on_its_line(tmp_path: Path) -> None:
    (tmp_path / "two\nlines").mkdir()
    (tmp_path / "two\nlines" / "events.jsonl").touch()
    with pytest.raises(UserError) as raised:
        find_run("other", tmp_path)
    assert raised.value.hint is not None
    assert r"two\x0alines" in raised.value.hint


def test_a_folder_of_runs_is_no_run_and_the_hint_says_how_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        folder = tmp_path / "my runs" / name
        folder.mkdir(parents=True)
        write(RunFolder(folder).events, MIXED)
    with pytest.raises(UserError) as caught:
        find_run("my runs")
    assert caught.value.hint == "it holds 2 runs: --out 'my runs'"
