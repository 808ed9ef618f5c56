"""``eval --certify`` and ``train --certify``: what is printed, and the exit codes."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import programs
import pytest
import smallest

from nanogpt_cli.text import tokens

RECIPE = smallest.recipe(data={"name": "set"}, model={"n_head": 2})
TEXT = "the Queen slept; naïve trees — 日本 — stood tall\n" * 60

Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def nanogpt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Program:
    """The program in a folder with a text, its bytes as tokens, and a recipe: (code, out, err)."""
    (tmp_path / "toy.txt").write_text(TEXT)
    (tmp_path / "toy.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = programs.nanogpt(*arguments)
        return code, *capfd.readouterr()

    assert call("prepare", "toy.txt", "--tokenizer", "byte", "--out", "set")[0] == 0
    return call


def rewrite(split: str, **values: Any) -> None:
    """Another entry for a split in the set's manifest, its checksum right again."""
    raw = tokens.read_manifest(Path("set")).raw
    raw[split] |= values
    tokens.write_manifest(Path("set"), raw)


def test_bits_per_byte_with_their_proof(nanogpt: Program) -> None:
    code, out, error = nanogpt("train", "toy.toml", "--certify")
    assert (code, out) == (0, "runs/toy\n")
    assert "every token decodes to the source's bytes" in error
    plain = json.loads(nanogpt("eval", "toy", "--json")[1])
    code, out, _ = nanogpt("eval", "toy", "--certify", "--json")
    assert code == 0
    found = json.loads(out)
    val = TEXT[int(len(TEXT) * 0.9) :].encode()
    proof = found["certificate"]
    assert proof["passed"] is True
    assert (proof["bytes"], proof["tokens"]) == (len(val), len(val))
    assert proof["sha256"] == hashlib.sha256(val).hexdigest()
    assert proof["sources"]["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert (proof["unscored_tokens"], proof["unscored_bytes"]) == (1, 1)
    assert found["loss"] == plain["loss"]
    expected = found["loss"] * (len(val) - 1) / math.log(2) / (len(val) - 1)
    assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-12)
    code, out, _ = nanogpt("eval", "toy", "--certify")
    assert hashlib.sha256(TEXT.encode()).hexdigest() in out
    assert f"{len(val)} bytes of it, as {len(val)} tokens" in out


def test_a_failed_proof_is_exit_code_1_and_costs_no_training(nanogpt: Program) -> None:
    assert nanogpt("train", "toy.toml")[0] == 0
    rewrite("val", bytes=999)
    code, out, error = nanogpt("eval", "toy", "--certify")
    assert code == 1
    assert "certified      no: the manifest counts 999 bytes of text" in out
    assert "loss" not in out
    assert error.splitlines()[-1] == "next: nanogpt data inspect set"
    code, out, _ = nanogpt("eval", "toy", "--certify", "--json")
    found = json.loads(out)
    assert (code, found["loss"], found["certificate"]["passed"]) == (1, None, False)
    code, out, error = nanogpt("train", "toy.toml", "--certify")
    assert (code, out) == (1, "")
    assert "999 bytes" in error
    assert not Path("runs/toy-2").exists()


def test_without_the_source_the_exit_code_is_2(nanogpt: Program) -> None:
    assert nanogpt("train", "toy.toml")[0] == 0
    Path("toy.txt").rename("away.txt")
    for command in (("eval", "toy"), ("train", "toy.toml")):
        code, out, error = nanogpt(*command, "--certify")
        assert (code, out) == (2, "")
        assert "nothing can be proved" in error
        assert "hint: put the files listed in set/sources.jsonl back" in error
        [without] = proposed(error)
        assert without == ["nanogpt", *command]
    options = ("--split", "train", "--batch", "2", "--data", "set")
    _, _, error = nanogpt("eval", "toy", "--certify", *options)
    [without] = proposed(error)
    assert set(without) == {"nanogpt", "eval", "toy", *options}
    assert nanogpt(*without[1:])[0] == 0
    Path("away.txt").rename("toy.txt")
    assert nanogpt("eval", "toy", "--certify")[0] == 0


def test_a_changed_source_is_prepared_again_as_the_hint_says(nanogpt: Program) -> None:
    assert nanogpt("train", "toy.toml")[0] == 0
    Path("toy.txt").write_text(TEXT + "and more\n")
    code, _, error = nanogpt("eval", "toy", "--certify")
    assert (code, "toy.txt was changed since" in error) == (2, True)
    prepare, without = proposed(error)
    assert nanogpt(*without[1:])[0] == 0
    code, _, error = nanogpt(*prepare[1:])
    assert code == 0
    made = shlex.split(error.splitlines()[-1])
    data = next(word for word in made if word.startswith("data.name="))
    assert nanogpt("train", "toy.toml", "--certify", "--set", data)[0] == 0


def proposed(error: str) -> list[list[str]]:
    """The commands between backticks of a message, in words."""
    return [shlex.split(words) for words in error.split("`")[1::2]]


def test_a_proof_goes_with_no_dashboard(nanogpt: Program) -> None:
    assert nanogpt("train", "toy.toml", "--certify", "--tui")[0] == 2
