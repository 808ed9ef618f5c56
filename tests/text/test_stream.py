"""Streamed text: whole characters, stop strings, and the same text as decoding at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_cli.text.tokenizers.stream import TextStream
from nanogpt_cli.text.tokenizers.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()


def pieces(data: bytes, stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(BYTES, stop)
    return [*(stream.push(byte) for byte in data), stream.finish()]


def test_a_character_appears_with_its_last_byte() -> None:
    assert pieces("né€😀".encode()) == ["n", "", "é", "", "", "€", "", "", "", "😀", ""]


def test_broken_utf8_becomes_replacement_characters() -> None:
    assert "".join(pieces(b"a\xffb")) == "a\ufffdb"
    assert pieces(b"a\xe2\x82") == ["a", "", "", "\ufffd"]


@given(st.binary(max_size=40))
def test_any_bytes_give_the_text_of_decoding_them_at_once(data: bytes) -> None:
    assert "".join(pieces(data)) == data.decode("utf-8", errors="replace")


def test_a_possible_stop_string_is_held_back_until_it_is_decided() -> None:
    assert pieces(b"aEN.END!", ("END",)) == ["a", "", "", "EN.", "", "", "", "", ""]
    assert pieces(b"aEN", ("END",)) == ["a", "", "", "EN"]


@given(
    st.text("abé", max_size=12),
    st.lists(st.text("abé", min_size=1, max_size=4), max_size=3),
)
def test_the_text_is_cut_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    # "First" as the tokens arrive: the shortest beginning of the text that holds a stop string.
    expected = text
    for end in range(1, len(text) + 1):
        found = [at for at in (text[:end].find(s) for s in stop) if at >= 0]
        if found:
            expected = text[: min(found)]
            break
    assert "".join(pieces(text.encode(), tuple(stop))) == expected


@pytest.mark.parametrize("stop", [(), ("",)])
def test_no_stop_string_never_stops(stop: tuple[str, ...]) -> None:
    stream = TextStream(BYTES, stop)
    assert stream.push(65) == "A"
    assert not stream.stopped
