"""The front of the program: commands by name, errors, exit codes, the first page."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
from programs import LIMIT
from typer.testing import CliRunner

from nanogpt_cli import __version__
from nanogpt_cli.cli import app, console, lazy

ROOT = Path(__file__).parents[2]


def nanogpt(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nanogpt_cli", *arguments],
        capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip


@pytest.mark.parametrize("name", lazy.TABLE)
def test_every_listed_command_loads_and_documents_every_option(name: str) -> None:
    command = lazy.load(name)
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert command.help
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            assert parameter.help, f"nanogpt {name} {parameter.opts} has no help"


def pages(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield words
    for name, child in getattr(command, "commands", {}).items():
        yield from pages(child, (*words, name))


@pytest.mark.parametrize("name", lazy.TABLE)
def test_every_page_fits_a_screen_of_100_by_40(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for words in pages(lazy.load(name), (name,)):
        lines = CliRunner().invoke(app, [*words, "--help"]).output.splitlines()
        assert lines[0].startswith(f"Usage: nanogpt {' '.join(words)}")
        assert len(lines) < 40, f"{words}: {len(lines)} lines"
        assert max(map(len, lines)) <= 100


def test_a_page_names_defaults_choices_and_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    page = CliRunner().invoke(app, ["sample", "--help"]).output
    assert "  -n, --max-new-tokens N  " in page
    assert "slide|roll" in page
    assert "[0.8]" in page
    assert max(map(len, page.splitlines())) <= 70
    assert "needs [plot]" in CliRunner().invoke(app, ["init-inspect", "--help"]).output


def test_first_page_fits_a_screen_and_names_every_command() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    lines = text.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    for name, (_, help_line) in lazy.TABLE.items():
        assert f"  {name:<14} {help_line}" in lines


def test_first_page_needs_no_heavy_library() -> None:
    code = (
        "import sys\nfrom nanogpt_cli.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = [m for m in ('torch', 'numpy', 'textual', 'pydantic', 'rich.markdown')"
        " if m in sys.modules]\nsys.stderr.write(','.join(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT
    )
    assert done.stderr == ""


def test_version() -> None:
    assert nanogpt("--version").stdout.strip() == f"nanogpt-cli {__version__}"


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    done = nanogpt("trian")
    assert done.returncode == 2
    assert "Did you mean 'train'?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "smal"), "did you mean the shipped recipe: small?"),
        (("train",), "which recipe?"),
        (("train", "--resum"), "hint: nanogpt train --help"),
        (
            ("train", "small", "--steps", "3"),
            "hint: keys of a recipe are set with --set train.max_steps=VALUE",
        ),
        (("plan", "small", "--learning_rate=1"), "set with --set optim.lr=VALUE"),
        (("train", "debug", "--set", "model.n_head=5"), "does not divide"),
        (("train", "--resume"), "name their folder with --out"),
        (
            ("train", "debug", "--set", 'log.sinks=["trackio"]'),
            "nanogpt-cli[trackio]",
        ),
        (("replay", "small"), "there is none in runs/"),
        (("runs", "diff", "a", "b"), "no run 'a'"),
        (("recipe", "check", "none.toml"), "no recipe"),
    ],
)
def test_bad_input_is_one_clear_message_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code = programs.nanogpt(*arguments)
    stdout, stderr = capfd.readouterr()
    assert code == 2, stderr
    assert said in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_recipes_lists_what_is_shipped() -> None:
    result = CliRunner().invoke(app, ["recipes"])
    for path in (ROOT / "recipes").glob("*.toml"):
        assert path.stem in result.output


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    """As in ``nanogpt recipe schema | head -1``."""
    reader = programs.start(
        [sys.executable, "-m", "nanogpt_cli", "recipe", "schema"], cwd=tmp_path, text=True
    )
    assert reader.stdout is not None
    assert reader.stderr is not None
    reader.stdout.close()
    assert reader.stderr.read() == ""
    assert reader.wait(timeout=LIMIT) == 0


def test_narrow_and_dumb_terminals_get_plain_lines_that_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    page = CliRunner().invoke(app, ["--help"]).output
    assert max(map(len, page.splitlines())) <= 60
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for kind, coloured in ("xterm", True), ("dumb", False):
        monkeypatch.setenv("TERM", kind)
        console.next_command("nanogpt runs")
        assert ("\x1b" in capsys.readouterr().err) == coloured
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    console.next_command("nanogpt runs")
    assert capsys.readouterr().err == "next: nanogpt runs\n"


@pytest.mark.parametrize("loaded", ["typer", "nanogpt_cli.cli.guard"])
def test_ctrl_c_while_the_program_loads_is_no_traceback(loaded: str) -> None:
    """A finder of modules that is interrupted when the program asks for this one."""
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {loaded!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from nanogpt_cli.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: stopped\n")


def test_a_ctrl_c_that_was_caught_does_not_change_how_the_program_ends(tmp_path: Path) -> None:
    """CPython remembers one that came within ``exec`` of source, if it was started with -m."""
    script = """
from nanogpt_cli import cli

def interrupted(_):
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        return 0

cli._outcome = interrupted
cli.main()
"""
    (tmp_path / "interrupted.py").write_text(script)
    search = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = programs.start(
        [sys.executable, "-m", "interrupted"], env={**os.environ, "PYTHONPATH": search}
    )
    programs.finish(process)
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads as Linux lists them")
def test_numpy_starts_no_threads_of_its_own() -> None:
    """They would spin beside those that compute."""
    code = (
        "import contextlib, os, sys\nfrom nanogpt_cli import cli\n"
        "sys.argv = ['nanogpt', '--version']\n"
        "with contextlib.suppress(SystemExit): cli.main()\n"
        "import numpy; print(len(os.listdir('/proc/self/task')))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    process = programs.start([sys.executable, "-c", code], env=environment, text=True)
    out, _ = programs.finish(process)
    assert process.returncode == 0
    assert out.split()[-1] == "1"
