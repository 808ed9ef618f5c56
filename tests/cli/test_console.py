"""Tables at any width: names are shortened, spare columns left out, numbers never cut."""

from __future__ import annotations

import io
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nanogpt_cli.cli import console

HEADS = ("run", "state", "step", "loss", "tokens", "when")
names = st.text("abcdefgh-ü", min_size=1, max_size=60)
rows = st.lists(
    st.tuples(names, st.just("finished"), *[st.integers(0, 10**7).map(str)] * 3, st.just("11-29")),
    min_size=1, max_size=5,
)  # fmt: skip


def table(cells: list[tuple[str, ...]], width: int | None) -> str:
    out = Console(file=io.StringIO(), width=width or 80, color_system=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "stdout", lambda: out)
        patch.setenv("COLUMNS", str(width)) if width else patch.delenv("COLUMNS", raising=False)
        console.print_table(
            console.fitting(
                HEADS, cells, numbers=HEADS[2:5], spare=("tokens", "when"), shorten=("run",)
            )
        )
    text = out.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


@given(rows, st.integers(60, 200))
def test_a_table_fits_and_no_number_is_cut(cells: list[tuple[str, ...]], width: int) -> None:
    lines = [line for line in table(cells, width).splitlines() if line.strip()]
    assert max(map(len, lines)) <= width
    for row, line in zip(cells, lines[2:], strict=True):
        for number in row[2:4]:
            assert number in line.split()
        name = line.split()[0]
        head, _, tail = name.partition("…")
        assert row[0].startswith(head)
        assert row[0].endswith(tail)


@given(rows)
def test_without_a_terminal_nothing_is_left_out(cells: list[tuple[str, ...]]) -> None:
    lines = [line for line in table(cells, None).splitlines() if line.strip()]
    for row, line in zip(cells, lines[2:], strict=True):
        assert line.split() == list(row)


def test_what_others_print_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with console.stdout_kept():
        sys.stdout.write("by their code\n")
        os.system("echo by a child process")
    sys.stdout.write("the product\n")
    sys.stdout.flush()
    out, err = capfd.readouterr()
    assert out == "the product\n"
    assert "by their code" in err
    assert "by a child process" in err
