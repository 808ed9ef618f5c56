"""The default prompt: a real beginning of the text, which the tokenizer has and the model reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_cli.text import beginning, prepare
from nanogpt_cli.text.tokens import open_data

PLAIN = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("First Citizen:\nBefore we proceed any further, hear me speak.", "First Citizen:\n"),
        ("\n\n  Once upon a time there was a king.\n", "Once upon a time there"),
        ("ACGT" * 50, "ACGT" * 6),
        ("word", "word"),
        ("\n \n", ""),
        ("", ""),
    ],
)
def test_the_first_line_that_is_not_blank(text: str, expected: str) -> None:
    assert beginning.cut(text) == expected


@given(PLAIN)
def test_a_beginning_is_a_piece_of_the_text(text: str) -> None:
    found = beginning.cut(text)
    assert found in text
    assert bool(found) == bool(text.strip())
    assert len(found) <= 26


@pytest.mark.parametrize("kind", ["char", "byte", "bpe:300"])
@pytest.mark.parametrize("eot", [False, True])
@pytest.mark.parametrize("most", [1, 5, 100])
def test_every_tokenizer_takes_it(tmp_path: Path, kind: str, eot: bool, most: int) -> None:
    source = tmp_path / "größe.txt"
    source.write_text("Äpfel und Birnen: 日本 😀 sind schön, sagte er.\n" * 50, encoding="utf-8")
    made = prepare.prepare(prepare.Request((str(source),), tokenizer=kind, eot=eot))
    data = open_data(made.folder)
    found = beginning.of(data, most)
    if data.tokenizer.eot is not None:
        assert found == ""
    else:
        assert source.read_text(encoding="utf-8").startswith(found)
        assert len(data.tokenizer.encode(found)) <= most
        assert found or most == 1  # "Ä" has two bytes
