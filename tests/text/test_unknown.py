"""Characters a vocabulary lacks: the nearest it has, and what becomes of the text."""

from __future__ import annotations

import pytest

from nanogpt_cli.errors import UserError
from nanogpt_cli.text.tokenizers import unknown
from nanogpt_cli.text.tokenizers.tokenizer import ByteTokenizer, CharTokenizer

KNOWN = CharTokenizer("\n !'-,.ABCabcdeT")


@pytest.mark.parametrize(
    ("character", "near"),
    [
        ("é", "e"), ("Ç", "C"), ("’", "'"), ("“", "'"), ("—", "-"), ("D", "d"), ("É", "e"),
        ("\t", " "), ("\u00a0", " "), ("t", "T"), ("…", "."), ("Ａ", "A"), ("z", ""), ("龍", ""),
    ],
)  # fmt: skip
def test_the_nearest_character_looks_alike(character: str, near: str) -> None:
    assert unknown.nearest(character, KNOWN.characters) == near


def test_known_text_passes_under_every_policy() -> None:
    for policy in ("error", "skip", "replace"):
        assert unknown.encode(KNOWN, "Abc!", policy) == (KNOWN.encode("Abc!"), [])  # type: ignore[arg-type]


def test_policies() -> None:
    assert unknown.encode(KNOWN, "aéz", "skip")[0] == KNOWN.encode("a")
    ids, notes = unknown.encode(KNOWN, "aézé", "replace")
    assert ids == KNOWN.encode("aee")
    assert notes == [
        "'é' (U+00E9) at position 1, 3: read as 'e'", "'z' (U+007A) at position 2: left out"
    ]  # fmt: skip


def test_a_text_in_another_script_makes_few_notes() -> None:
    ids, notes = unknown.encode(KNOWN, "".join(map(chr, range(0x4E00, 0x5200))) + "a", "skip")
    assert ids == KNOWN.encode("a")
    assert len(notes) == 11
    assert notes[-1].startswith("and 1,014 more")


def test_a_refusal_names_few_and_counts_the_rest() -> None:
    with pytest.raises(UserError) as caught:
        unknown.encode(KNOWN, "qrsuvwxyz" + "é" * 9, "error")
    assert "'q' (U+0071) at position 0" in caught.value.message
    assert "and 5 more" in caught.value.message
    assert "\n" not in caught.value.message


def test_bytes_lack_nothing() -> None:
    assert unknown.encode(ByteTokenizer(), "é龍", "error")[0] == list("é龍".encode())
