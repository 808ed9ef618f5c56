"""Files that are no text, known by their first bytes, and how to get the text out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from nanogpt_cli import shell
from nanogpt_cli.errors import UserError

_HEAD: Final = 1 << 16  # bytes in which the names of an archive's first files are looked for


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        what: what such a file is, for "is ..., not text".
        suffix: the usual one.
        hint: what to do about it; empty if it holds no text.
        command: words that turn ``IN`` into ``OUT``; none if there is no usual program.
        out: the suffix of ``OUT``.
    """

    what: str
    suffix: str
    hint: str = ""
    command: tuple[str, ...] = ()
    out: str = ".txt"


def _pandoc(what: str, suffix: str) -> Kind:
    words = ("pandoc", "-f", suffix[1:], "-t", "plain", "IN", "-o", "OUT")
    return Kind(what, suffix, "turn it into text first", words)


def _table(what: str, suffix: str) -> Kind:
    words = ("libreoffice", "--headless", "--convert-to", "csv", "IN")
    return Kind(what, suffix, "save it as CSV first", words, ".csv")


def _packed(way: str) -> Kind:
    hint = "unpack it first; files named .gz (gzip) and .zst (zstd) are unpacked while reading"
    return Kind(f"packed ({way})", "", hint)


_SAVE: Final = "save it as plain text in the program that made it"
_PICTURE: Final = Kind("a picture", ".png", "leave it out; OCR finds the text in a picture",
                       ("tesseract", "IN", "OUT"), "")  # fmt: skip
_SOUND: Final = Kind("sound or video", "")
_PROGRAM: Final = Kind("a program", "")
_ZIP: Final = _packed("zip")
_PARQUET: Final = Kind("a Parquet file", "", "give it a name that ends in .parquet")
_ARROW: Final = Kind("an Arrow file", "", "write the table as Parquet (.parquet) first")

# What an archive that is a document holds, in the order of trial.
_DOCUMENTS: Final = (
    (b"application/epub+zip", _pandoc("an EPUB book", ".epub")),
    (b"vnd.oasis.opendocument.text", _pandoc("an OpenDocument text", ".odt")),
    (b"vnd.oasis.opendocument.spreadsheet", _table("an OpenDocument spreadsheet", ".ods")),
    (b"vnd.oasis.opendocument", Kind("an OpenDocument file", ".odp", _SAVE)),
    (b"word/document.xml", _pandoc("a Word document", ".docx")),
    (b"xl/workbook.xml", _table("an Excel workbook", ".xlsx")),
    (b"ppt/presentation.xml", Kind("a PowerPoint presentation", ".pptx", _SAVE)),
)
# First bytes that no text has.
_MARKS: Final = {
    b"%PDF-": Kind("a PDF document", ".pdf", "turn it into text first", ("pdftotext", "IN", "OUT")),
    b"{\\rtf": _pandoc("a document in Rich Text Format", ".rtf"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": Kind("a document of an old Office", ".doc", _SAVE),
    b"\x1f\x8b\x08": _packed("gzip"), b"\x28\xb5\x2f\xfd": _packed("zstd"),
    b"\xfd7zXZ\x00": _packed("xz"), b"7z\xbc\xaf\x27\x1c": _packed("7-Zip"),
    b"Rar!\x1a\x07": _packed("RAR"), b"PK\x03\x04": _ZIP, b"PK\x05\x06": _ZIP,
    **{f"BZh{level}1AY&SY".encode(): _packed("bzip2") for level in range(1, 10)},
    b"\x89PNG\r\n\x1a\n": _PICTURE, b"\xff\xd8\xff": _PICTURE, b"II*\x00": _PICTURE,
    b"MM\x00*": _PICTURE, b"\x1aE\xdf\xa3": _SOUND,
    b"\x7fELF": _PROGRAM, b"MZ\x90\x00": _PROGRAM, b"\xcf\xfa\xed\xfe": _PROGRAM,
    b"\xca\xfe\xba\xbe": _PROGRAM,
    b"SQLite format 3\x00": Kind("an SQLite database", "", "export its text as CSV first"),
    b"\x93NUMPY": Kind("a NumPy array", ""), b"\x89HDF\r\n\x1a\n": Kind("an HDF5 file", ""),
}  # fmt: skip
# Letters with which a text may begin as well; without a zero byte near them it does.
_WORDS: Final = {
    b"GIF87a": _PICTURE, b"GIF89a": _PICTURE, b"8BPS": _PICTURE, b"ID3": _SOUND, b"OggS": _SOUND,
    b"fLaC": _SOUND, b"RIFF": _SOUND, b"PAR1": _PARQUET, b"ARROW1": _ARROW,
    b"GGUF": Kind("a model (GGUF)", ""),
}  # fmt: skip


def kind(head: bytes, name: str = "") -> Kind | None:
    """What kind of binary file begins with these bytes; None if none is recognised.

    Args:
        head: the beginning of a file; 64 KiB tell documents from other archives for certain.
        name: of the file, by whose suffix a document is told where its beginning does not.
    """
    found = next((known for mark, known in _MARKS.items() if head.startswith(mark)), None)
    if found is _ZIP:
        held = (known for part, known in _DOCUMENTS if part in head[:_HEAD])
        named = (known for _, known in _DOCUMENTS if name.lower().endswith(known.suffix))
        return next(held, None) or next(named, found)
    if found is None and b"\0" in head[:64]:
        found = next((known for mark, known in _WORDS.items() if head.startswith(mark)), None)
        if found is _SOUND and head[8:12] == b"WEBP":
            found = _PICTURE
        if head[4:8] == b"ftyp":
            found = _SOUND
    if found is None and head[257:262] == b"ustar":
        found = _packed("tar")
    return found


def refusal(head: bytes, name: str) -> UserError | None:
    """The error about a file that begins with these bytes; None if it may be text.

    Args:
        head: as of ``kind``.
        name: of the file, or ``stdin``.
    """
    found = kind(head, name)
    if found is None:
        return None
    hint = found.hint or "it holds no text: leave it out"
    if found.command and not (found.out == ".csv" and name.lower().endswith(".csv")):
        hint = f"{hint}: {_command(found, name)}"
    return UserError(f"{name} is {found.what}, not text", hint)


def _command(found: Kind, name: str) -> str:
    """The command that makes text of a file, and what it writes."""
    path = Path(name) if name != "stdin" else Path(f"my{found.suffix}")
    before = ""
    if path.suffix.lower() in (".gz", ".zst"):
        before, path = "unpack it, then ", path.with_suffix("")
    out = path.with_suffix(found.out)
    if found.out == ".txt" and (out == path or out.exists()):  # nothing is to be overwritten
        out = path.with_name(path.name + found.out)
    if "OUT" not in found.command:  # it is written to the current folder
        out = Path(out.name)
    words = {"IN": shell.path_word(path), "OUT": shell.path_word(out)}
    line = " ".join(shell.quoted(words.get(word, word)) for word in found.command)
    written = shell.quoted(words["OUT"] if found.out else f"{words['OUT']}.txt")
    return f"{before}`{line}`, and prepare {written}"
