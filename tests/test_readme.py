"""What the README promises is what the project does."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import LIMIT

from nanogpt_cli import recipe_files
from nanogpt_cli.cli import lazy
from nanogpt_cli.cli.recipes import markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_recipe_table_is_the_one_the_program_prints() -> None:
    assert markdown(recipe_files.shipped()) in README


def test_ci_runs_the_readme_commands_word_for_word() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"^```\n(pip install .*?)\n```$", README, flags=re.MULTILINE)
    assert commands[0] == "pip install . && nanogpt train recipes/small.toml"
    install, test = commands[1].split(" && ")
    assert install.removeprefix("pip install ") in script
    assert test == "pytest"
    assert re.search(r"^pytest$", script, flags=re.MULTILINE)


def test_every_command_in_the_readme_exists() -> None:
    named = set(re.findall(r"(?<!-)nanogpt ([a-z][a-z-]+)\b", README))
    assert named - set(lazy.TABLE) == set()


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_python_examples_run(
    tmp_path: Path, shakespeare_path: Path, asset_cache: Callable[[str], Path]
) -> None:
    """One after the other in one folder, as a reader would; the second needs the first's run."""
    asset_cache("tinyshakespeare")
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(examples) == 3
    code = "\nprint('=====')\n".join(examples)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    trained, sampled, inspected = done.stdout.split("=====\n")
    steps = [line.split() for line in trained.splitlines()]
    assert [int(step) for step, _ in steps] == [50, 100]
    assert float(steps[-1][1]) == pytest.approx(2.63, abs=0.05)
    assert len(sampled.rstrip("\n")) == 40
    found = [line.split(": std ")[0] for line in inspected.splitlines()]
    assert found == ["mlp_proj", "transformer.h.3.mlp.c_proj.weight"]
    assert all(len(example.splitlines()) <= 10 for example in examples)
