"""``nanogpt runs note``, ``runs tag`` and ``runs --filter``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_runs import invoke, write
from typer.testing import CliRunner

from nanogpt_cli.cli import app
from nanogpt_cli.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "fast", 0.5, ended="finished")
    write(tmp_path, "slow", 0.25, ended="stopped")
    return tmp_path


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert isinstance(done.exception, UserError), done.output
    return f"{done.exception.message} {done.exception.hint}"


def test_notes_and_tags_are_set_printed_listed_and_removed(root: Path) -> None:
    out = ("--out", root)
    invoke("runs", "note", "fast", "a warm start", *out)
    assert invoke("runs", "note", "fast", *out) == "a warm start\n"
    invoke("runs", "tag", "fast", "baseline", "+seed-2", *out)
    invoke("runs", "tag", "fast", "--remove", "baseline", "good", *out)
    assert invoke("runs", "tag", "fast", *out) == "seed-2\ngood\n"
    assert "seed-2 good" in invoke("runs", *out)
    [row] = json.loads(invoke("runs", "--filter", "tag:good note:warm", *out, "--json"))["runs"]
    assert (row["run"], row["note"], row["tags"]) == ("fast", "a warm start", ["seed-2", "good"])
    invoke("runs", "note", "fast", "", *out)
    invoke("runs", "tag", "fast", "--remove", "seed-2", "--remove", "good", *out)
    assert not (root / "fast" / "notes.json").exists()
    assert " tags" not in invoke("runs", *out)


@pytest.mark.parametrize(
    ("wanted", "there"),
    [("lr>=0.5", ["fast"]), ("-state:finished", ["slow"]), ("best<=1.5", ["fast", "slow"]),
     ("run.name=slow", ["slow"]), ("s", ["fast", "slow"]), ("none-of-them", [])],
)  # fmt: skip
def test_the_list_is_filtered_as_in_the_dashboard(
    root: Path, wanted: str, there: list[str]
) -> None:
    found = json.loads(invoke("runs", "--filter", wanted, "--out", root, "--json"))["runs"]
    assert sorted(row["run"] for row in found) == there


def test_the_table_and_json_say_the_same(root: Path) -> None:
    table = invoke("runs", "--out", root)
    for row in json.loads(invoke("runs", "--out", root, "--json"))["runs"]:
        [line] = [line for line in table.splitlines() if row["run"] in line]
        for said in (row["state"], f"{row['best_val_loss']:.4f}", f"{row['loss']:.4f}",
                     f"{row['step']}/{row['max_steps']}"):  # fmt: skip
            assert said in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--filter", "lr>=x"], "'lr>=x' in the filter needs a number"),
        (["--filter", "statex:live"], "no run has a field 'statex'"),
        (["tag", "fast", "two words"], "'two words' cannot be a tag"),
        (["tag", "fast", "--remove", "x"], "no tag 'x' to remove"),
        (["note", "fast", "x" * 2001], "the note has 2,001 characters"),
        (["note", "gone", "x"], "no run 'gone'"),
    ],
)
def test_what_is_refused(root: Path, arguments: list[str], said: str) -> None:
    assert said in refused("runs", *arguments, "--out", root)
