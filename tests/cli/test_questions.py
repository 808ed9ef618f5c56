"""The five questions of docs/questions.md: the commands answer today what the page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import nanogpt_cli
from nanogpt_cli.cli import app

PAGE = Path(nanogpt_cli.__file__).parent / "docs" / "questions.md"
BLOCKS = re.findall(r"```console\n\$ (nanogpt [^\n]*)\n(.*?)```", PAGE.read_text(), re.S)
# Digits after the point may differ by their last one, where processors add in another order.
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
BRAILLE = re.compile(r"[\u2800-\u28ff]")


def plain(text: str) -> list[str]:
    """Lines without charts and ends of lines."""
    return [line.rstrip() for line in text.splitlines() if not BRAILLE.search(line)]


def size_of_last_digit(number: str) -> float:
    mantissa, _, exponent = number.partition("e")
    return float(10 ** (int(exponent or 0) - len(mantissa.partition(".")[2])))


def test_there_are_five_questions() -> None:
    assert len(BLOCKS) == 5
    assert len(re.findall(r"^## .*\?$", PAGE.read_text(), re.M)) == 5


@pytest.mark.numeric
@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=[c for c, _ in BLOCKS])
def test_the_command_says_what_the_page_shows(
    command: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    found, wanted = plain(done.stdout), plain(shown)
    if wanted[0] == wanted[-1] == "…":
        wanted = wanted[1:-1]
        start = [NUMBER.sub("0", line) for line in found].index(NUMBER.sub("0", wanted[0]))
        found = found[start : start + len(wanted)]
    assert len(wanted) <= 29
    assert len(found) == len(wanted)
    for now, then in zip(found, wanted, strict=True):
        assert NUMBER.sub("0", now).split() == NUMBER.sub("0", then).split()
        for a, b in zip(NUMBER.findall(now), NUMBER.findall(then), strict=True):
            unit = size_of_last_digit(b) if "." in b or "e" in b else 0.0
            assert float(a) == pytest.approx(float(b), abs=1.01 * unit, rel=0.005)
