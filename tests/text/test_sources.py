"""Every kind of input gives its documents; every kind of bad input gives one clear message."""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt_cli.errors import UserError
from nanogpt_cli.text import prepare, tokens
from nanogpt_cli.text.prepare import Request
from nanogpt_cli.text.sources import documents, inputs
from nanogpt_cli.text.sources.documents import Reader, Tally
from nanogpt_cli.text.sources.inputs import FileSource, StandardInput
from nanogpt_cli.text.sources.reading import Meter
from nanogpt_cli.text.tokenizers import cuts

DOCUMENTS = ["first, naïve", 'second "quoted"\nwith two lines', "third 日本語"]


def read(*paths: Path, glob: str | None = None, **options: str) -> list[str]:
    """The documents in ``paths``."""
    reader = Reader(cuts.character_cut, **options)
    tally, found, open_parts = Tally(), [], []
    for source in inputs.expand(list(map(str, paths)), glob, reader.encoding, tally):
        for chunk in source.chunks(reader, Meter(), tally):
            open_parts.append(chunk.data)
            if chunk.last:
                found.append(b"".join(open_parts).decode())
                open_parts = []
    return found


def records(path: Path, field: str = "text") -> Path:
    rows = [{"id": i, field: text} for i, text in enumerate(DOCUMENTS)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


def test_jsonl(tmp_path: Path) -> None:
    assert read(records(tmp_path / "a.jsonl")) == DOCUMENTS
    assert read(records(tmp_path / "b.ndjson", "body"), text_field="body") == DOCUMENTS


def test_jsonl_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = records(tmp_path / "a.jsonl")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(path) == DOCUMENTS


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_csv(tmp_path: Path, suffix: str, delimiter: str) -> None:
    import csv

    path = tmp_path / f"a.{suffix}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["id", "text"], *([i, t] for i, t in enumerate(DOCUMENTS))])
    assert read(path) == DOCUMENTS


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": DOCUMENTS * 200, "n": range(600)}), path)
    assert read(path) == DOCUMENTS * 200
    with pytest.raises(UserError, match="no column 'body'") as caught:
        read(path, text_field="body")
    assert "'text'" in caught.value.hint
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged Parquet"):
        read(path)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_packed_files_by_their_inner_suffix(tmp_path: Path, suffix: str) -> None:
    if suffix == "zst":
        pack = pytest.importorskip("zstandard").ZstdCompressor().compress
    else:
        pack = gzip.compress
    plain = records(tmp_path / "a.jsonl")
    packed = tmp_path / f"b.jsonl.{suffix}"
    packed.write_bytes(pack(plain.read_bytes()) + pack(b'{"text": "another member"}\n'))
    assert read(packed) == [*DOCUMENTS, "another member"]
    text = tmp_path / f"c.txt.{suffix}"
    text.write_bytes(pack(os.urandom(200_000).hex().encode()))
    assert len(read(text)[0]) == 400_000
    for damage in (text.read_bytes()[:-100_000], b"no such format at all, really"):
        text.write_bytes(damage)
        with pytest.raises(UserError, match=r"c\.txt\.\w+ is a corrupt or truncated"):
            read(text)


def test_folders_are_walked_once_sorted_without_hidden_and_binary(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "deep" / "2.md").write_text("two")
    (tmp_path / "a.py").write_text("one")
    (tmp_path / "z.bin").write_bytes(b"\0\1\2")
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert read(tmp_path) == ["one", "two"]
    assert read(tmp_path, glob="*.md") == ["two"]
    assert read(tmp_path, glob="**/*.py") == ["one"]
    assert read(tmp_path, glob="b/*") == ["two"]
    assert list(inputs.walk(tmp_path, "*.md", without={"deep"})) == []
    with pytest.raises(UserError, match="no text files"):
        read(tmp_path, glob="*.rs")


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match=r"cannot read .*/a"):
        read(tmp_path / "a")


def test_other_encodings(tmp_path: Path) -> None:
    text = "naïve\nöl\n" * 50_000
    for encoding in ("latin-1", "utf-16", "utf-8-sig"):
        path = tmp_path / f"{encoding}.txt"
        path.write_bytes(text.encode(encoding))
        assert read(path, encoding=encoding) == [text]
    rows = tmp_path / "a.jsonl"
    rows.write_bytes('{"text": "öl"}\n{"text": "two"}'.encode("utf-16"))
    assert read(rows, encoding="utf-16") == ["öl", "two"]
    with pytest.raises(UserError, match=r"latin-1\.txt: not valid ascii near byte 2:"):
        read(tmp_path / "latin-1.txt", encoding="ascii")


def test_standard_input() -> None:
    with Path("/proc/self/stat").open("rb", buffering=0) as raw:
        source = StandardInput(raw)
        chunks = list(source.chunks(Reader(cuts.character_cut), Meter(), Tally()))
    assert chunks[-1].last
    assert source.read()[0].size == sum(len(p.data) for p in chunks) > 0


def test_a_changing_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * (cuts.BLOCK + 10))
    chunks = FileSource(path).chunks(Reader(cuts.character_cut), Meter(), Tally())
    next(chunks)
    with path.open("a") as file:
        file.write("more")
    with pytest.raises(UserError, match=r"a\.txt changed while"):
        list(chunks)


BAD_LINES = [
    ('{"text": "one"}\n{"text": "tw', "line 2, column 10: not JSON"),
    ('{"text": "one"}\ntrue', "line 2: true where an object"),
    ('{"text": "one"}\n["two"]', "line 2: an array where an object"),
    ('{"text": "one"}\n{"txet": "two"}', "line 2: no field 'text'"),
    ('{"text": "one"}\n{"text": 2}', "line 2: field 'text' is a number"),
    ('{"text": "one"}\n{"text": true}', "line 2: field 'text' is true, not text"),
    ('{"text": "one"}\n{"text": "\\ud800"}', "half a surrogate pair"),
    (b'{"text": "one"}\n{"text": "\xff"}', "line 2: invalid UTF-8 at byte 11"),
]


@pytest.mark.parametrize(("content", "reason"), BAD_LINES)
def test_broken_records_name_file_and_line(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(path) in caught.value.message
    assert reason in caught.value.message
    assert read(path, errors="skip")[0] == "one"


def test_broken_csv_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n1,one\n2,two,three\n4,\xff\n5,five\n")
    with pytest.raises(UserError, match="line 3: 3 columns where the first line names 2"):
        read(path)
    assert read(path, errors="skip") == ["one", "five"]
    path.write_bytes(b"id,text\n1,\xff\n")
    with pytest.raises(UserError, match=r"line 2: invalid UTF-8 \(0xff\)"):
        read(path)
    path.write_text("id,body\n1,one\n")
    with pytest.raises(UserError, match="no column 'text'"):
        read(path)
    path.write_text('id,text\n1,"one')
    with pytest.raises(UserError, match="not CSV"):
        read(path)


def prepared(path: Path, out: Path, **options: object) -> str:
    request = Request((str(path),), tokenizer="char", **options)  # type: ignore[arg-type]
    data = tokens.open_data(prepare.prepare(request, out=out).folder)
    return data.tokenizer.decode([*data.train.tolist(), *data.val.tolist()])


@pytest.mark.parametrize("block", [64, 1 << 19])
def test_invalid_utf8_is_found_to_the_byte(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "BLOCK", block)
    path = tmp_path / "a.txt"
    path.write_bytes("é".encode() * 300 + b"\xff" + b"tail")
    with pytest.raises(UserError, match=r"a\.txt: invalid UTF-8 at byte 600 \(0xff"):
        prepared(path, tmp_path / "o")
    assert not (tmp_path / "o").exists()
    assert prepared(path, tmp_path / "r", errors="replace") == "é" * 300 + "\ufffdtail"
    assert prepared(path, tmp_path / "s", errors="skip") == "é" * 300 + "tail"
    for out in ("r", "s"):
        assert tokens.read_manifest(tmp_path / out).raw["receipt"]["broken_bytes"] == 1


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        ("", {}, "there is no text in"),
        ("ab", {}, "the train split has 1 of"),
        ("only one document", {"split": "hash"}, "split has 0 of"),
        ("text", {"val_fraction": 1.0}, "val_fraction is 1.0"),
        ("text", {"split": "head"}, "split is 'head'"),
        ("text", {"errors": "ignore"}, "errors is 'ignore'"),
        ("text", {"encoding": "utf-9"}, "unknown encoding 'utf-9'"),
    ],
)
def test_impossible_requests(
    tmp_path: Path, content: str, options: dict[str, object], reason: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=reason):
        prepared(path, tmp_path / "o", **options)
    assert not (tmp_path / "o").exists()


def test_absent_inputs_and_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    with pytest.raises(UserError, match="no data set or file is called 'shakespear'"):
        prepare.prepare(Request(("shakespear",)))
    with pytest.raises(UserError, match="nothing to prepare"):
        prepare.prepare(Request(()))
    for module, suffix in (("zstandard", "zst"), ("pyarrow", "parquet")):
        monkeypatch.setitem(sys.modules, module, None)
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(b"PAR1")
        with pytest.raises(UserError, match=f"needs the package {module}"):
            read(path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="Hugging Face hub") as caught:
        prepare.prepare(Request(("tinystories",), tokenizer="byte"))
    assert ".parquet files" in caught.value.hint


def test_hub_sets_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    asked: list[object] = []

    def load_dataset(*args: object, **options: object) -> list[dict[str, str]]:
        asked.append((args, options))
        return [{"text": f"story {i}"} for i in range(200)]

    fake = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    request = Request(("fineweb-edu",), tokenizer="byte", limit=150)
    made = prepare.prepare(request)
    assert asked == [
        (("HuggingFaceFW/fineweb-edu", "sample-10BT"), {"split": "train", "streaming": True})
    ]
    assert made.manifest["receipt"]["documents"] == 150

    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nmore")

    fake.load_dataset = broken
    with pytest.raises(UserError, match="ConnectionError: no route"):
        prepare.prepare(Request(("openwebtext",), tokenizer="byte"))


def test_a_huge_record_comes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "BLOCK", 100)
    monkeypatch.setattr(cuts, "LIMIT", 300)
    reader = Reader(cuts.character_cut)
    chunks = list(documents.document(b"x" * 1000, "name", 7, reader, Tally()))
    assert len(chunks) > 5
    assert [p.last for p in chunks] == [False] * (len(chunks) - 1) + [True]
    assert b"".join(p.data for p in chunks) == b"x" * 1000
    assert {p.place for p in chunks} == {7}


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress, gzip.compress])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_packed_files_are_not_taken_for_text(
    tmp_path: Path, pack: Callable[[bytes], bytes], encoding: str
) -> None:
    path = tmp_path / "notes.txt.packed"
    path.write_bytes(pack(b"Some words of text.\n" * 50))
    with pytest.raises(UserError, match=r"is packed \((bzip2|xz|gzip)\), not text"):
        prepare.prepare(
            prepare.Request((str(path),), tokenizer="byte", encoding=encoding),
            out=tmp_path / "set", report=lambda _: None,
        )  # fmt: skip
