"""Commands in messages: what a shell reads is what was meant."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanogpt_cli import shell
from nanogpt_cli.recipe import files as recipe_files

BASH = shutil.which("bash")
# What a file name on Linux may hold, bytes that are not UTF-8 included.
ANY_NAME = st.binary(min_size=1, max_size=20).filter(lambda b: b"\0" not in b).map(os.fsdecode)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@pytest.mark.skipif(BASH is None, reason="needs bash")
@given(st.lists(ANY_NAME | TEXT, min_size=20, max_size=20))
def test_a_shell_reads_the_words_that_were_meant(words: list[str]) -> None:
    line = shell.command(*words).removeprefix("nanogpt ")
    assert line.isprintable()
    done = subprocess.run(
        [str(BASH), "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True, timeout=60
    )
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in words]


@given(
    TEXT | st.sampled_from(["2024", "true", "1979-05-27", "[1]", "'x'", "a = b", "x # y", "~/x"])
)
@example(" \x7f")
def test_a_setting_is_read_as_the_string_that_was_meant(text: str) -> None:
    option, setting = shell.setting("sample.prompt", text)
    assert option == "--set"
    assert recipe_files.load("debug", [setting]).recipe.sample.prompt == text


@given(st.integers(0, 2**40) | st.booleans() | st.floats(1e-9, 1.0))
def test_a_setting_holds_numbers_and_switches(value: float) -> None:
    _, setting = shell.setting("x", value)
    assert recipe_files._toml_value("x", setting.partition("=")[2]) == value


def test_paths_are_short_and_never_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell.path_word(tmp_path / "a b" / "c") == "a b/c"
    assert shell.path_word(Path("-x")) == str(tmp_path / "-x")
    assert shell.path_word(Path("~x")) == str(tmp_path / "~x")
    assert shell.path_word(tmp_path.parent / "y") == str(tmp_path.parent / "y")
    assert shell.hint("watch", "runs/a b") == "`nanogpt watch 'runs/a b'`"
    assert shell.settings(None) == []
    assert shell.settings(["a=b"]) == ["--set", "a=b"]
