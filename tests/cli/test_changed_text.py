"""A text that changes after a run was trained on it: the run keeps the set that it began with."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import programs
import pytest
import smallest

from nanogpt_cli.text import look, tokens

TEXT = "the king walked under the trees while rain fell on the stone and the queen slept\n" * 60
RECIPE = smallest.recipe(data={"tokenizer": "byte"}, sample={"prompt": "the "})


class Program:
    """The program in this process, in a folder with a text, a recipe and a run of it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        code = programs.nanogpt(*words)
        return code, *self._capsys.readouterr()

    def eval(self, *words: str) -> dict[str, object]:
        code, out, error = self("eval", "toy", "--json", *words)
        assert code == 0, error
        return json.loads(out)  # type: ignore[no-any-return]


@pytest.fixture
def nanogpt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    monkeypatch.chdir(tmp_path)
    Path("toy.txt").write_text(TEXT)
    Path("toy.toml").write_text(RECIPE)
    program = Program(capsys)
    assert program("train", "toy.toml")[0] == 0
    return program


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def the_set() -> Path:
    (found,) = look.prepared_folders()
    return found


@pytest.mark.parametrize(
    "command",
    [
        ("prepare", "toy.txt", "-t", "byte"),
        ("train", "toy.toml"),
        ("train", "toy.toml", "--from", "toy", "--set", "model.n_embd=16"),  # which is refused
        ("plan", "toy.toml", "--flops", "1e9"),
        ("recipe", "check", "toy.toml"),
    ],
)
def test_a_run_goes_on_with_the_set_it_was_trained_on(
    nanogpt: Program, command: tuple[str, ...]
) -> None:
    first, made = the_set(), contents(the_set())
    loss = nanogpt.eval()["loss"]
    Path("toy.txt").write_text(TEXT.upper())
    code, _, error = nanogpt(*command)
    assert code == (2 if "--from" in command else 0), error
    assert contents(first) == made
    if command[0] in ("prepare", "train", "plan"):
        assert f"{first} stays as it is: {Path('toy.txt').absolute()} changed" in error
        other = next(folder for folder in look.prepared_folders() if folder != first)
        assert other.name == "toy-2-byte"
        assert bytes(tokens.open_data(other).train.astype("u1")).isupper()
    assert nanogpt.eval()["loss"] == loss
    assert nanogpt("replay", "toy", "1")[0] == 0
    code, _, error = nanogpt("train", "toy", "--resume", "--set", "train.max_steps=3")
    assert code == 0, error
    assert contents(first) == made


def test_a_set_that_was_moved_is_found_by_its_tokens(nanogpt: Program) -> None:
    Path("data").mkdir()
    shutil.move(the_set(), Path("data/renamed"))
    Path("toy.txt").unlink()
    assert nanogpt.eval()["data"] == "data/renamed"
    code, _, error = nanogpt("train", "toy", "--resume", "--set", "train.max_steps=3")
    assert code == 0, error


def test_a_set_that_was_replaced_is_named_with_the_ways_out(nanogpt: Program) -> None:
    folder, old = the_set(), tokens.read_manifest(the_set()).train.sha256[:8]
    Path("toy.txt").write_text(TEXT.upper())
    assert nanogpt("prepare", "toy.txt", "-t", "byte", "--force")[0] == 0
    assert the_set() == folder
    new = tokens.read_manifest(folder).train.sha256[:8]
    said = (
        rf"{re.escape(str(folder))} was prepared again, on \d{{4}}-\d\d-\d\d \d\d:\d\d, "
        rf"and has other training tokens \({new}\) than before \({old}\)"
    )
    resume = ("train", "toy", "--resume", "--set", "train.max_steps=3")
    for command in (resume, ("eval", "toy"), ("replay", "toy", "1")):
        code, _, error = nanogpt(*command)
        assert code == 2, command
        assert re.search(said, error), error
        assert "put the text back as it was then" in error
        (hint,) = re.findall("`nanogpt (.*)`", error)
        code, _, error = nanogpt(*shlex.split(hint))
        assert code == 0, error
    Path("toy.txt").write_text(TEXT)
    assert nanogpt(*resume)[0] == 0
    assert nanogpt("eval", "toy")[0] == 0


def test_a_set_that_is_gone_with_its_text_is_named(nanogpt: Program) -> None:
    folder = the_set()
    shutil.rmtree(folder)
    Path("toy.txt").unlink()
    for command in (("train", "toy", "--resume"), ("eval", "toy")):
        code, _, error = nanogpt(*command)
        assert code == 2
        assert f"was trained on, {folder}, is gone or was replaced" in error
        assert "called 'toy.txt'" in error


def test_a_text_that_needs_an_option_of_prepare_is_to_be_prepared_first(nanogpt: Program) -> None:
    Path("rows.csv").write_text("body,n\nthe king walked,1\nthe queen slept,2\n")
    code, _, error = nanogpt("eval", "toy", "--data", "rows.csv")
    assert code == 2
    assert "prepare it first" in error
    assert "nanogpt prepare rows.csv --tokenizer byte --out FOLDER" in error
    assert "--text-field body" in error
