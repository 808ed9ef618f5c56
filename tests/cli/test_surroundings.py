"""What surrounds a command may be anything: its environment, names of folders, a user's code."""

from __future__ import annotations

import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import TEXT, make_run

from nanogpt_cli import cli
from nanogpt_cli.cli import console
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.user_input import whole

SMALL = {"n_layer": 1, "n_embd": 8, "block_size": 8}
# Digits that str.isdigit() accepts and int() refuses, or reads as others than they look.
ODD_NUMBERS = ("²", "٣", "9" * 5000, "-1", "1.5", "1_0", " 1", "", "0x1", "x")


def run(capsys: pytest.CaptureFixture[str], *arguments: str, **environment: str) -> tuple[int, str]:
    """The program itself: its exit code and what it says on stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nanogpt", *arguments])
        for name, value in environment.items():
            patch.setenv(name, value)
        for cached in (console.stdout, console.stderr):
            cached.cache_clear()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    for cached in (console.stdout, console.stderr):
        cached.cache_clear()
    said = capsys.readouterr().err
    assert "this is a bug" not in said, said
    assert "Traceback" not in said, said
    return int(stopped.value.code or 0), said


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "tiny", **SMALL)
    return tmp_path


@given(st.text() | st.integers().map(str))
def test_a_whole_number_is_ascii_digits(text: str) -> None:
    value = whole(text)
    plain = text.isascii() and text.isdigit() and len(text) <= 18
    assert value == (int(text) if plain else None)


@pytest.mark.parametrize("size", [*ODD_NUMBERS, "0", "10001", "999999999999"])
def test_a_size_that_no_terminal_has_is_not_used(
    place: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    for command in (["runs"], ["recipe", "show", "debug"], ["watch", "tiny", "--once"]):
        before = os.environ.get("COLUMNS")
        assert run(capsys, *command, COLUMNS=size, LINES=size)[0] == 0
        assert os.environ.get("COLUMNS") == before


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"])
@pytest.mark.parametrize("value", ODD_NUMBERS)
def test_a_launcher_gives_whole_numbers(
    place: Path, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    several = "2" if name == "LOCAL_RANK" else "1"
    launched = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": several, name: value}
    code, said = run(capsys, "train", "debug", "--device", "cpu", **launched)
    assert code == 2
    assert f"{name}={value[:80]} in the environment is not a whole number" in said


def test_the_home_of_an_unknown_user_is_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = "~no such user/x"
    Path("text.txt").write_text(TEXT)
    for command in (["cache", "list"], ["data"], ["prepare", "text.txt"], ["train", "debug"]):
        code, said = run(capsys, *command, NANOGPT_HOME=where)
        assert code == 2
        assert f"{where}: the home folder of" in said
    for command in (["prepare", where], ["train", "debug", "--set", f"data.name={where}"]):
        code, said = run(capsys, *command)
        assert code == 2
        assert where in said


@pytest.mark.parametrize("number", ODD_NUMBERS)
def test_numbers_in_options_are_refused_in_words(
    place: Path, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    assert run(capsys, "watch", "tiny", "--once", "--size", f"{number}x{number}")[0] == 2
    assert run(capsys, "sample", "tiny", "--checkpoint", number)[0] == 2
    assert run(capsys, "prepare", "runs", "--tokenizer", f"bpe:{number}")[0] == 2
    command = ("init-inspect", "debug", "--theory", "--set", f"data.tokenizer=bpe:{number}")
    assert run(capsys, *command)[0] == 2


@pytest.mark.parametrize("number", ["²", "٣", "8", "000008\n", "9" * 200, "1" * 30, "00000٣"])
def test_a_folder_of_another_name_is_no_checkpoint(
    place: Path, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    for folder in ("checkpoints", "incidents"):
        (Path("runs/tiny") / folder / f"step-{number}").mkdir(parents=True)
    code, said = run(capsys, "sample", "tiny", "-n", "1", "-p", "be", "--checkpoint", "last")
    assert code == 0, said
    assert "step 7" in said
    assert run(capsys, "replay", "tiny")[0] == 2


@pytest.mark.parametrize("text", ["²", "9" * 5000, "a²", "1²2"])
def test_keys_of_a_log_are_sorted_whatever_they_are(
    place: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    for name, value in (("a", 1), ("b", 2)):
        folder = place / "runs" / name
        folder.mkdir()
        (folder / "events.jsonl").write_text(
            f'{{"type":"run_started","recipe":{{"{text}":{value},"x":{value}}},'
            '"name":"a","step":0,"max_steps":2,"time":1.0}\n'
            f'{{"type":"layers","step":1,"time":1.0,"every":1,"stats":{{"{text}":[1.0],"h.1":[1.0]}}}}\n'
        )
    for page in ("compare", "layers"):
        assert run(capsys, "watch", "a", "b", "--once", "--page", page)[0] == 0


@pytest.mark.parametrize("statement", ["sys.exit(3)", "sys.exit('no')", "raise SystemExit", "1/0"])
def test_code_of_a_user_that_ends_the_program_is_reported(
    place: Path, capsys: pytest.CaptureFixture[str], statement: str
) -> None:
    Path("mine.py").write_text(f"import sys\ndef make():\n    {statement}\n")
    Path("script.py").write_text(f"import sys\n{statement}\n")
    for origin in ("mine.py:make", "script.py:make"):
        code, said = run(capsys, "init-inspect", "--from", origin)
        assert code == 2
        assert origin.partition(":")[0] in said


GPT = "GPT(GPTConfig(1, 2, 8, 8, 20, 0.0, True, 'gelu'))"


@pytest.mark.parametrize(
    "change",
    ["m.transformer.wte.to('meta')", "setattr(m.transformer, 'wte', other)",
     "setattr(m.transformer.h[0], 'ln_1', other)"],
)  # fmt: skip
def test_a_model_of_a_user_is_checked_before_it_is_measured(
    place: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    Path("mine.py").write_text(
        "import torch\nfrom nanogpt_cli.model.gpt import GPT, GPTConfig\n"
        f"def make():\n    m, other = {GPT}, torch.nn.Embedding(5, 3)\n    {change}\n    return m\n"
    )
    code, said = run(capsys, "init-inspect", "--from", "mine.py:make")
    assert code == 2
    assert "mine.py:make" in said
    assert "Traceback" not in said


INIT = ("about", "source", "mismatch", "base", "aliases", "lr", "multipliers", "wte", "linear",
        "base_width", "base_depth", "lr.q", "multipliers.output", "x")  # fmt: skip


@pytest.mark.parametrize("key", INIT)
@pytest.mark.parametrize("scheme", ["custom", "gpt2"])
def test_a_table_of_initial_values_holds_what_it_can_hold(
    place: Path, capsys: pytest.CaptureFixture[str], key: str, scheme: str
) -> None:
    for value in ("inf", "[inf]", "{a = inf}", "1979-05-27", "''", "'1+1'", "true", "-1"):
        Path("r.toml").write_text(f"[model]\ninit = '{scheme}'\n[init]\n{key} = {value}\n")
        code, said = run(capsys, "recipe", "check", "r.toml")
        if code == 0:  # then a run can keep it
            recipe_files.to_toml(recipe_files.load("r.toml").recipe)
        else:
            assert "init" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [("recipe", {"train": 1}), ("recipe", 1), ("recipe", {"train": {"parts": "x"}}),
     ("step", None), ("model", []), ("recipe", {"data": []})],
)  # fmt: skip
def test_an_incident_is_checked_where_it_is_read(
    place: Path, capsys: pytest.CaptureFixture[str], key: str, value: object
) -> None:
    Path("t.txt").write_text(TEXT * 9)
    assert run(capsys, "prepare", "t.txt", "-t", "char", "--out", "set")[0] == 0
    recipe = Path("runs/tiny/recipe.toml")
    recipe.write_text('[data]\nname = "set"\n[model]\nn_layer = 1\nn_embd = 8\nn_head = 2\n')
    incident = Path("runs/tiny/incidents/step-000003")
    incident.mkdir(parents=True)
    good = {"step": 3, "model": {}, "recipe": {}}
    (incident / "incident.json").write_text(json.dumps({**good, key: value}))
    code, said = run(capsys, "replay", "tiny")
    assert code == 2
    assert f"incident.json: {key}" in said


COLUMNS: dict[str, Any] = {
    "time": pyarrow.array([10**15], pyarrow.timestamp("s")),
    "duration": pyarrow.array([10**17], pyarrow.duration("s")),
    "number": pyarrow.array([2**63], pyarrow.uint64()),
    "date": pyarrow.array([datetime.date(2020, 1, 1)]),
    "bytes": pyarrow.array([b"\xff"]),
    "list": pyarrow.array([["a"]]),
    "table": pyarrow.array([{"a": "b"}]),
    "nothing": pyarrow.array([None]),
    "numbers by key": pyarrow.array([1]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("errors", ["strict", "skip", "replace"])
def test_a_parquet_column_that_holds_no_text_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], kind: str, errors: str
) -> None:
    table = pyarrow.table({"text": COLUMNS[kind], "id": [TEXT]})
    pyarrow.parquet.write_table(table, "x.parquet")
    command = ("prepare", "x.parquet", "-t", "char", "--out", "o", "--errors", errors)
    code, said = run(capsys, *command)
    assert code == 2
    assert "x.parquet" in said
    assert not Path("o").exists()
