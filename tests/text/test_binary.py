"""Files that are no text are named, alone and in folders, with a command that gives their text."""

from __future__ import annotations

import gzip
import io
import shlex
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_cli.errors import UserError
from nanogpt_cli.text import prepare
from nanogpt_cli.text.receipt import notes
from nanogpt_cli.text.sources import binary

PDF = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n" + b"1 0 obj (no zero bytes in here)\n" * 400


def archive(*names: str, mimetype: str = "") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        if mimetype:
            made.writestr("mimetype", mimetype)
        for name in names:
            made.writestr(name, "<x/>")
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        made.addfile(tarfile.TarInfo("a.txt"))
    return out.getvalue()


OFFICE = ("[Content_Types].xml", "_rels/.rels")
FILES = {
    "my report.pdf": (PDF, "a PDF document", "pdftotext", "my report.txt"),
    "a.docx": (archive(*OFFICE, "word/document.xml"), "a Word document", "pandoc", "a.txt"),
    "a.xlsx": (archive(*OFFICE, "xl/workbook.xml"), "an Excel workbook", "libreoffice", "a.csv"),
    "late.docx": (archive("media/1.png", *OFFICE), "a Word document", "pandoc", "late.txt"),
    "a.epub": (archive(mimetype="application/epub+zip"), "an EPUB book", "pandoc", "a.txt"),
    "a.odt": (archive(mimetype="application/vnd.oasis.opendocument.text"),
              "an OpenDocument text", "pandoc", "a.txt"),
    "a.rtf": (b"{\\rtf1\\ansi Hello}", "a document in Rich Text Format", "pandoc", "a.txt"),
    "a.png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(90), "a picture", "tesseract", "a.txt"),
    "a.gif": (b"GIF89a\x10\0\x10\0" + bytes(90), "a picture", "tesseract", "a.txt"),
    "old.doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(90), "a document of an old Office",
                "", ""),
    "a.zip": (archive("a.txt"), "packed (zip)", "", ""),
    "a.tar": (tarred(), "packed (tar)", "", ""),
    "a.mp4": (b"\0\0\0\x18ftypmp42" + bytes(90), "sound or video", "", ""),
    "named.csv": (archive(*OFFICE, "xl/workbook.xml"), "an Excel workbook", "", ""),
    "a.bin": (b"PAR1\x15\0" + bytes(90), "a Parquet file", "", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
def test_a_binary_file_is_named(
    name: str, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, what, program, made = FILES[name]
    Path(name).write_bytes(data)
    request = prepare.Request((name,), tokenizer="byte", encoding=encoding)
    with pytest.raises(UserError) as caught:
        prepare.prepare(request, out=tmp_path / "set")
    assert caught.value.message == f"{tmp_path / name} is {what}, not text"
    assert not (tmp_path / "set").exists()
    if program:
        words = shlex.split(caught.value.hint.split("`")[1])
        assert words[0] == program
        assert name in words
        assert caught.value.hint.endswith(f", and prepare {shlex.quote(made)}")
    else:
        assert "`" not in caught.value.hint


def test_the_command_overwrites_nothing_and_fits_what_is_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def hint(name: str, data: bytes) -> str:
        Path(name).write_bytes(data)
        with pytest.raises(UserError) as caught:
            prepare.prepare(prepare.Request((name,), tokenizer="byte"), out=tmp_path / "set")
        return caught.value.hint

    Path("a.txt").write_text("kept")
    assert "`pdftotext a.pdf a.pdf.txt`" in hint("a.pdf", PDF)
    assert "`pdftotext b.txt b.txt.txt`" in hint("b.txt", PDF)
    assert "unpack it, then `pdftotext c.pdf c.txt`" in hint("c.pdf.gz", gzip.compress(PDF))
    assert "unpack it first" in hint("c.tar.gz", gzip.compress(tarred()))


def test_binary_files_of_a_folder_are_left_out_and_the_first_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(PDF)
    (folder / "b.tar.gz").write_bytes(gzip.compress(tarred()))
    (folder / "c.dat").write_bytes(b"what\0ever")
    request = prepare.Request((str(folder),), tokenizer="byte")
    with pytest.raises(UserError, match="no text files in") as caught:
        prepare.prepare(request, out=tmp_path / "set")
    assert "a.pdf is a PDF document, not text: turn it into text first: `pdf" in caught.value.hint
    (folder / "d.txt").write_text("some text\n" * 9)
    made = prepare.prepare(request, out=tmp_path / "set").manifest
    assert made["sources"]["files"] == 1
    told = f"binary files left out: 3; the first: {folder / 'a.pdf'} is a PDF document, not"
    assert any(note.startswith(told) for note in notes(made))


def test_what_is_called_parquet_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for data, what in (
        (PDF, "is a PDF document, not text"), (b"hello\n" * 9, "is no"), (b"", "is no"),
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(UserError, match=what):
            prepare.prepare(prepare.Request((str(path),), tokenizer="byte"), out=tmp_path / "set")


WORDS = ["GIF89a", "PAR1", "RIFF", "OggS", "ID3", "8BPS", "GGUF", "MZ", "PK", "BM", "Rar!", "BZh9"]


@given(
    st.sampled_from(WORDS), st.text(st.characters(codec="utf-8", min_codepoint=32), max_size=300)
)
def test_a_text_may_begin_with_the_letters_of_a_format(word: str, rest: str) -> None:
    assert binary.refusal(f"{word} {rest}".encode(), "a.txt") is None
