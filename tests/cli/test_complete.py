"""Shell completion: runs, recipes, prepared data and known words, without heavy libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import LIMIT
from typer.main import get_command
from typer.testing import CliRunner

from nanogpt_cli.cli import app


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nanogpt_home: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/first", "runs/second", "elsewhere/third"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "recipe.toml").touch()
    (tmp_path / "mine.toml").touch()
    for shelf, name in ((tmp_path, "notes-char"), (nanogpt_home, "plays-gpt2")):
        (shelf / "data" / name).mkdir(parents=True)
        (shelf / "data" / name / "manifest.json").touch()
    (nanogpt_home / "assets").mkdir()
    (nanogpt_home / "assets" / "text.txt").touch()
    return tmp_path


def proposals(line: str) -> set[str]:
    """What bash would be offered for the last word of ``line``."""
    words = line.split(" ")
    variables = {
        "_NANOGPT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1),
    }  # fmt: skip
    result = CliRunner().invoke(app, [], prog_name="nanogpt", env=variables)
    return set(result.stdout.split())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("line", "wanted", "unwanted"),
    [
        ("nanogpt tr", "train", "sample"),
        ("nanogpt train --res", "--resume --restarts", "--set"),
        ("nanogpt train ", "small debug mine.toml", "first"),
        ("nanogpt train --resume ", "first second", "small"),
        ("nanogpt sample ", "first second", "small third"),
        ("nanogpt sample --run s", "second", "first"),
        ("nanogpt sample --out elsewhere ", "third", "first"),
        ("nanogpt watch first ", "second", "small"),
        ("nanogpt export ", "first", "small"),
        ("nanogpt recipe diff small f", "first", "second"),
        ("nanogpt recipe ch", "check", "show"),
        ("nanogpt data inspect ", "notes-char plays-gpt2", "first"),
        ("nanogpt eval --data ", "notes-char plays-gpt2 shakespeare", "first"),
        ("nanogpt prepare sh", "shakespeare", "plays"),
        ("nanogpt train small --set optim.l", "optim.lr=", "optim.name="),
        ("nanogpt init-inspect --init gpt2", "gpt2 gpt2-w", "normal"),
        ("nanogpt eval --device c", "cpu cuda", "auto"),
        ("nanogpt docs in", "initialisation", "json"),
        ("nanogpt cache clear ", "assets data text.txt plays-gpt2", "notes-char"),
    ],
)
def test_what_is_offered(line: str, wanted: str, unwanted: str) -> None:
    found = proposals(line)
    assert set(wanted.split()) <= found
    assert not set(unwanted.split()) & found


@pytest.mark.usefixtures("here")
def test_a_broken_place_offers_nothing_and_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").rename(tmp_path / "gone")
    (tmp_path / "runs").write_text("not a folder")
    assert proposals("nanogpt sample ") == set()


@pytest.mark.usefixtures("here")
def test_proposals_need_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom nanogpt_cli.cli import app\n"
        "try:\n    app(prog_name='nanogpt')\nexcept SystemExit:\n    pass\n"
        "heavy = [m for m in ('torch', 'textual', 'numpy', 'rich') if m in sys.modules]"
        "\nsys.stderr.write(','.join(heavy))"
    )
    for line in ("nanogpt train ", "nanogpt sample --run "):
        number = str(line.count(" "))
        env = os.environ | {"_NANOGPT_COMPLETE": "complete_bash", "COMP_WORDS": line}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env=env | {"COMP_CWORD": number}, timeout=LIMIT,
        )  # fmt: skip
        assert done.stderr == ""
        assert done.stdout.split()


def test_the_shell_script_is_offered() -> None:
    assert {"--install-completion", "--show-completion"} <= {
        name for parameter in get_command(app).params for name in parameter.opts
    }
