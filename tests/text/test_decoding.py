"""Text in any encoding is read as it was written, or refused with the name of its encoding."""

from __future__ import annotations

import codecs
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from nanogpt_cli import foreign_files, text_encoding
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import prepare, tokens
from nanogpt_cli.text.prepare import Request
from nanogpt_cli.text.sources.decoding import Peekable, as_utf8
from nanogpt_cli.text.sources.documents import Reader, Tally
from nanogpt_cli.text.tokenizers import cuts

ENCODINGS = (
    "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be",
    "utf-7", "ascii", "latin-1", "cp1252", "cp1251", "koi8-r", "cp037", "mac-roman", "shift-jis",
    "euc-jp", "iso2022_jp", "gbk", "gb18030", "big5", "euc-kr", "iso8859-15", "cp437",
)  # fmt: skip
WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
NEWLINES = ("\n", "\r\n", "\r", "\x85", "\u2028", "\x0b", "\x0c")
TEXTS = (
    "Hello there, this is plain text.\nIt has lines.\n",
    "Привет, это текст на русском языке.\n",
    "你好，世界。这是一个测试文本，没有空格。\n",
    "これは日本語のテキストです。ひらがなとカタカナ。\n",
    "안녕하세요 이것은 한국어 텍스트입니다\n",
    "यह हिंदी में एक पाठ है।\n",
    "naïve café, 日本 and 😀😀 in one line\n",
)


def read(data: bytes, encoding: str = "utf-8", errors: str = "strict", **more: str) -> str:
    """The text of a file with this content."""
    reader = Reader(cuts.character_cut, errors=errors, encoding=encoding)
    return as_utf8(io.BytesIO(data), "f", reader, Tally(), **more).read().decode()


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(ENCODINGS),
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20), max_size=8),
    st.sampled_from(NEWLINES),
)
@example("cp037", ["plain text"] * 8, "\n")
@example("utf-16-le", ["中中中中"] * 20, "中")
def test_the_text_read_is_the_text_written(encoding: str, lines: list[str], end: str) -> None:
    # What the encoding lacks is left out, so that every encoding meets texts of many scripts.
    text = end.join(lines).encode(encoding, "ignore").decode(encoding)
    assume(not text.startswith("\ufeff"))
    data = text.encode(encoding)
    assume(encoding.startswith("utf") or text_encoding.marked(data) == ("", 0))
    assert read(data, encoding) == text


@given(st.sampled_from(TEXTS), st.sampled_from(["", *WIDE]), st.integers(1, 30))
def test_a_byte_order_mark_is_obeyed_and_left_out(text: str, encoding: str, times: int) -> None:
    data = ("\ufeff" + text * times).encode(encoding or "utf-8")
    for wanted in ("utf-8", "utf-16", "latin-1", encoding or "utf-8"):
        assert read(data, wanted) == text * times
    assert foreign_files.decoded(data, "f") == text * times


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("errors", ["strict", "replace", "skip"])
def test_the_hint_names_the_encoding_and_is_right(text: str, encoding: str, errors: str) -> None:
    data = (text * 3).encode(encoding)
    with pytest.raises(UserError) as caught:
        read(data, errors=errors)
    assert f"--encoding {encoding} (in a recipe: data.encoding)" in caught.value.hint
    assert read(data, encoding) == text * 3
    assert read(data, encoding[:6]) == text * 3  # the byte order is found
    with pytest.raises(UserError, match=r"is not UTF-8 text|is not text"):
        foreign_files.decoded(data, "f")


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_else_is_taken_for_utf_16(text: str) -> None:
    for encoding in ("utf-8", "latin-1", "cp1251", "gbk", "shift-jis", "euc-kr"):
        assert text_encoding.guess((text * 9).encode(encoding, "ignore")) == ""
    data = (text * 9).encode()
    for wanted in ("utf-16", "utf-32"):
        with pytest.raises(UserError, match=f"is not {wanted} text"):
            read(data, wanted)


def test_plain_text_is_not_read_as_utf_16_of_a_named_byte_order() -> None:
    data = b"a line of plain text\n" * 20
    for wanted in WIDE:
        with pytest.raises(UserError, match=f"is not {wanted} text|not valid"):
            read(data, wanted)


def test_zeros_are_no_text_wherever_they_stand(tmp_path: Path, monkeypatch: object) -> None:
    monkeypatch.setattr(cuts, "BLOCK", 4096)  # type: ignore[attr-defined]
    path = tmp_path / "a.txt"
    path.write_bytes(b"plain text\n" * 7000 + bytes(4096))
    for errors in ("strict", "skip"):
        request = Request((str(path),), tokenizer="byte", errors=errors)
        with pytest.raises(UserError, match="of its characters are zeros, so it is not utf-8 text"):
            prepare.prepare(request, out=tmp_path / "o")
    path.write_bytes(b"one \0 among very many other characters\n" * 9)
    prepare.prepare(Request((str(path),), tokenizer="byte"), out=tmp_path / "o")


def test_marks_are_in_no_vocabulary(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for i, encoding in enumerate(("utf-8-sig", "utf-16", "utf-8", "utf-32")):
        (folder / f"{i}.txt").write_bytes(f"note {i}\n".encode(encoding))
    made = prepare.prepare(Request((str(folder),), tokenizer="char"), out=tmp_path / "o")
    data = tokens.open_data(made.folder)
    text = data.tokenizer.decode([*data.train.tolist(), *data.val.tolist()])
    assert text == "".join(f"note {i}\n" for i in range(4))
    remarks = {r["remark"]: r["files"] for r in made.manifest["receipt"]["remarks"]}
    assert remarks == {
        "read as utf-16-le, as the byte-order mark says": 1,
        "read as utf-32-le, as the byte-order mark says": 1,
    }


def test_a_utf_16_text_of_a_folder_is_not_left_out_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.txt").write_bytes("with a byte order\n".encode("utf-16-be") * 3)
    with pytest.raises(UserError, match=r"b\.txt: 50% of its characters are zeros"):
        prepare.prepare(Request((str(tmp_path),), tokenizer="byte"), out=tmp_path / "o")


@given(st.lists(st.sampled_from(["a", "\r", "\n", "\r\n", "é", "b" * 50]), max_size=60))
def test_newlines_can_be_made_plain(parts: list[str]) -> None:
    text = "".join(parts)
    assert read(text.encode(), newlines="lf") == text.replace("\r\n", "\n").replace("\r", "\n")
    assert read(text.encode()) == text


def test_carriage_returns_are_said_and_can_be_removed(tmp_path: Path) -> None:
    from nanogpt_cli.text.receipt import notes

    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\r\n" * 9)
    kept = prepare.prepare(Request((str(path),), tokenizer="char"), out=tmp_path / "k").manifest
    assert any("18 carriage returns" in n and "--newlines lf" in n for n in notes(kept))
    asked = Request((str(path),), tokenizer="char", newlines="lf")
    plain = prepare.prepare(asked, out=tmp_path / "p").manifest
    assert plain["receipt"]["bytes"] == kept["receipt"]["bytes"] - 18
    assert not list(notes(plain))


def test_lost_bytes_are_counted_in_every_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("naïve öl\n".encode() * 3)
    for errors, text in (("replace", "na\ufffd\ufffdve \ufffd\ufffdl\n"), ("skip", "nave l\n")):
        request = Request((str(path),), tokenizer="char", encoding="ascii", errors=errors)
        made = prepare.prepare(request, out=tmp_path / errors)
        assert made.manifest["receipt"]["broken_bytes"] == 12
        assert made.manifest["receipt"]["characters"] == 3 * len(text)


@given(st.binary(max_size=40), st.lists(st.integers(0, 9), max_size=9))
def test_peeking_takes_nothing(data: bytes, sizes: list[int]) -> None:
    stream, left = Peekable(io.BytesIO(data)), data
    for size in sizes:
        assert stream.peek(2 * size) == left[: 2 * size]
        assert stream.read(size) == left[:size]
        left = left[size:]
    assert stream.read() == left


def test_every_error_policy_has_its_codec() -> None:
    from nanogpt_cli.text.request import ERROR_POLICIES
    from nanogpt_cli.text.sources.decoding import CODEC_POLICY

    assert set(CODEC_POLICY) == set(ERROR_POLICIES)
    assert all(codecs.lookup_error(name) for name in CODEC_POLICY.values())
