"""Records of JSON and Parquet: arrays, lines and what is neither; bad ones cost only themselves."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import prepare, target, tokens
from nanogpt_cli.text.prepare import Request
from nanogpt_cli.text.proof import certify
from nanogpt_cli.text.receipt import notes
from nanogpt_cli.text.sources import documents, fields, records
from nanogpt_cli.text.sources.decoding import Peekable
from nanogpt_cli.text.sources.documents import Reader, Tally
from nanogpt_cli.text.sources.inputs import FileSource
from nanogpt_cli.text.tokenizers import cuts

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=9)


def array(text: str | bytes, errors: str = "strict", tally: Tally | None = None) -> list[str]:
    """The documents of a file with a JSON array."""
    data = text if isinstance(text, bytes) else text.encode()
    reader = Reader(cuts.character_cut, errors=errors)
    chunks = records.json_array(Peekable(io.BytesIO(data)), "f", reader, tally or Tally())
    return [chunk.data.decode() for chunk in chunks]


@settings(max_examples=60)
@given(TEXTS, st.sampled_from([None, 1, "\t"]), st.booleans(), st.integers(1, 40))
def test_arrays_are_read_record_by_record(
    texts: list[str], indent: int | str | None, plain: bool, block: int
) -> None:
    rows = texts if plain else [{"id": i, "text": text} for i, text in enumerate(texts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK", block)
        content = json.dumps(rows, indent=indent, ensure_ascii=len(texts) % 2 == 0)
        assert array(content) == [text for text in texts if text]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[\n{"text": "a"},\n{"text": "b}\n]', "line 3: not JSON: Invalid control character"),
        ('[{"text": "a"}\n{"text": "b"}]', "line 2: not JSON: ',' is missing"),
        ('[{"text": "a"},', "line 1: not JSON: it ends in the middle"),
        ('[{"text": "a"}, {"text"', "line 1: not JSON: Expecting"),
        ('[{"text": "a"}', "line 1: not JSON: it ends in the middle"),
        ('[{"text": "a"},\n3]', "line 2: a number where an object"),
        ('[{"text": "a"},\n{"body": "b"}]', "line 2: no field 'text'"),
        ('[{"text": "a"},\n{"text": 3}]', "line 2: field 'text' is a number"),
        (b'["a",\n"\xff"]', r"line 2: invalid UTF-8 \(0xff\)"),
        ('["a",\n"\\ud800"]', "line 2: half a surrogate pair"),
        ("[" * 100_000, "line 1: it is nested more than 64 deep"),
    ],
)
def test_a_broken_array_names_the_line(text: str | bytes, reason: str) -> None:
    with pytest.raises(UserError, match=f"^f, {reason}"):
        array(text)


def test_bad_records_of_an_array_are_skipped_when_asked() -> None:
    tally = Tally()
    assert array('[{"text": "a"}, 3, {"text": []}, {"text": 4}, {"text": "b"}]', "skip", tally) == [
        "a", "b",
    ]  # fmt: skip
    assert (tally.skipped_records, tally.empty_records) == (2, 1)
    assert array('["a\\ud800"]', "replace") == ["a?"]


@pytest.mark.parametrize(
    ("content", "documents", "remarks"),
    [
        (json.dumps([{"text": "one"}, {"text": "two"}]), ["one", "two"], 0),
        (json.dumps(["one", "two"]), ["one", "two"], 0),
        ('{"text": "one"}\n{"text": "two"}\n', ["one", "two"], 0),
        ('\ufeff{"text": "one"}', ["one"], 0),
        ('{"name": "a package"}', ['{"name": "a package"}'], 1),
        ('{\n "text": "spread"\n}\n', ["spread"], 0),
        ('{\n "body": "spread"\n}\n', ['{\n "body": "spread"\n}\n'], 1),
        ('{\n "text": "open"\n', ['{\n "text": "open"\n'], 1),
        ("[1, 2, 3]", ["[1, 2, 3]"], 1),
        ("[]", ["[]"], 1),
        ("no JSON at all", ["no JSON at all"], 1),
    ],
)
def test_the_content_of_a_json_file_decides(
    tmp_path: Path, content: str, documents: list[str], remarks: int
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    from nanogpt_cli.text.sources.reading import Meter

    source, tally = FileSource(path), Tally()
    chunks = source.chunks(Reader(cuts.character_cut), Meter(), tally)
    assert [chunk.data.decode() for chunk in chunks] == documents
    assert len(tally.remarks) == remarks
    assert source.holds_records == (not remarks)


def test_records_of_another_name_are_not_taken_for_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"id": "1", "content": "a longer text"}] * 3))
    with pytest.raises(UserError, match="line 1: no field 'text'") as caught:
        prepare.prepare(Request((str(path),), tokenizer="byte"), out=tmp_path / "o")
    assert "--text-field content (in a recipe: data.text_field)" in caught.value.hint


def test_a_number_of_any_length_in_another_field_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(('{"text": "one", "n": ' + "9" * 5000 + '}\n{"text": "two", "n": -1}\n') * 9)
    made = prepare.prepare(
        Request((str(path),), tokenizer="byte", split="tail"), out=tmp_path / "o"
    )
    assert made.manifest["receipt"]["documents"] == 18


def test_a_parquet_column_of_numbers_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"n": [1, 2], "body": ["a", "b"]}), path)
    for errors in ("strict", "skip"):
        request = Request((str(path),), tokenizer="byte", text_field="n", errors=errors)
        with pytest.raises(UserError, match="column 'n' holds int64, not text") as caught:
            prepare.prepare(request, out=tmp_path / "o")
        assert "--text-field body " in caught.value.hint


def test_when_all_records_were_skipped_the_first_reason_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one"}\n' * 3)
    request = Request((str(path),), tokenizer="byte", errors="skip")
    with pytest.raises(
        UserError, match=r"all 3 records were skipped; the first: .*, line 1: no fie"
    ):
        prepare.prepare(request, out=tmp_path / "o")


def test_files_with_unusual_names_are_recognised_again(tmp_path: Path) -> None:
    import os

    names = [
        "line\u2028separator.txt",
        "next\x85line.txt",
        "v\x0bt.txt",
        os.fsdecode(b"caf\xe9.txt"),
    ]
    for name in names:
        (tmp_path / name).write_text("some text\n" * 5)
    request = Request((str(tmp_path),), tokenizer="byte")
    made = prepare.prepare(request, out=tmp_path.parent / "o")
    assert made.manifest["sources"]["files"] == len(names)
    assert not prepare.prepare(request, out=tmp_path.parent / "o").fresh


@given(st.text(st.sampled_from("ab\n\r\u2028\x85\x0b\x0c"), max_size=30))
def test_lines_end_at_newlines_alone(text: str) -> None:
    found = foreign_files.lines(text)
    assert found == [
        line.rstrip("\n").removesuffix("\r") for line in io.StringIO(text, newline="\n")
    ]


def chat(folder: Path) -> Path:
    path = folder / "chat log.csv"
    path.write_text("id,body\n" + "".join(f'{i},"message {i}"\n' for i in range(60)))
    return path


def test_a_recipe_prepares_exactly_what_it_asks_for(tmp_path: Path) -> None:
    path, said = chat(tmp_path), list[str]()
    by_hand = prepare.prepare(Request((str(path),), tokenizer="byte", text_field="body")).folder
    asked = {"name": str(path), "tokenizer": "byte", "text_field": "body"}
    assert prepare.ensure(asked, report=said.append) == by_hand
    assert said == []
    ended = prepare.ensure(asked | {"eot": True}, report=said.append)
    assert ended != by_hand
    assert said[1] == f"{by_hand} stays as it is: eot was False, now True"
    assert tokens.read_manifest(ended).eot == 256
    assert tokens.read_manifest(by_hand).eot is None  # what a person prepared stays
    del said[:]
    assert prepare.ensure(asked | {"eot": True}, report=said.append) == ended
    assert prepare.ensure(asked, report=said.append) == by_hand
    assert said == []
    with pytest.raises(UserError, match="no column 'text'") as caught:
        prepare.ensure(asked | {"text_field": "text"}, report=said.append)
    assert "data.text_field" in caught.value.hint


def test_a_set_of_any_name_satisfies_a_recipe(tmp_path: Path) -> None:
    path, said = chat(tmp_path), list[str]()
    request = Request((str(path),), tokenizer="byte", text_field="body")
    made = prepare.prepare(request, name="talks").folder
    asked = {"name": str(path), "tokenizer": "byte", "text_field": "body"}
    assert prepare.ready(asked) == prepare.ensure(asked, report=said.append) == made
    assert said == []
    path.write_text(path.read_text() + '99,"one more"\n')  # a changed text is noticed
    assert prepare.ready(asked) is None
    assert (other := prepare.ensure(asked, report=said.append)) != made
    assert prepare.ready(asked) == other
    assert tokens.read_manifest(made).raw["receipt"]["documents"] == 60


def test_a_set_that_a_recipe_names_is_used_and_the_difference_said(tmp_path: Path) -> None:
    path, said = chat(tmp_path), list[str]()
    made = prepare.prepare(
        Request((str(path),), tokenizer="byte", text_field="body"), out=tmp_path / "d"
    ).folder
    prepare.ensure({"name": str(made), "tokenizer": "byte"}, report=said.append)
    assert said == []  # what the recipe leaves at its default it does not ask for
    prepare.ensure({"name": str(made), "tokenizer": "char"}, report=said.append)
    prepare.ensure({"name": str(made), "tokenizer": "byte", "limit": 3}, report=said.append)
    assert said == [
        f"{made} is used as it was prepared: tokenizer was 'byte', now 'char'",
        f"{made} is used as it was prepared: limit was None, now 3",
    ]


def test_several_texts_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"this is {name}\n" * 9)
    asked = {"name": ["~/a.txt", "~/b.txt"], "tokenizer": "byte"}
    folder = prepare.ensure(asked, report=lambda _: None)
    assert tokens.read_manifest(folder).raw["sources"]["files"] == 2
    moved = folder.rename(tmp_path / "set")
    assert prepare.ensure({"name": "~/set", "tokenizer": "byte"}, report=print) == moved


def test_a_set_of_an_earlier_version_lacks_only_defaults(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n" * 9)
    request = Request((str(tmp_path / "a.txt"),), tokenizer="byte")
    folder = prepare.prepare(request, out=tmp_path / "o").folder
    raw = dict(tokens.read_manifest(folder).raw)
    raw["request"] = {k: v for k, v in raw["request"].items() if k != "newlines"}
    tokens.write_manifest(folder, raw)
    assert not prepare.prepare(request, out=tmp_path / "o").fresh
    from nanogpt_cli.text.request import checked

    assert target.difference(folder, checked(request)) == ""
    other = checked(Request(request.inputs, tokenizer="byte", newlines="lf"))
    assert target.difference(folder, other) == "newlines was 'keep', now 'lf'"


def test_the_vocabulary_is_that_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("abcdefg \n" * 20)

    def size(**data: object) -> int:
        return prepare.vocabulary_size({"name": str(path), **data}, report=lambda _: None)

    assert size(tokenizer="char") == 9
    assert size(tokenizer="char", eot=True) == 10
    assert size(tokenizer="byte", eot=True) == 257
    assert size(name="shakespeare", tokenizer="char") == 65
    assert size(name="openwebtext", tokenizer="bpe:4096") == 4096


def test_an_option_in_a_hint_is_quoted_as_a_shell_needs_it() -> None:
    assert documents.option("text_field", "nur eine").startswith("--text-field 'nur eine' (")
    assert documents.option("eot").startswith("--eot (")


def of(path: Path, **options: object) -> dict[str, Any]:
    """The manifest of a set of bytes made from a file."""
    request = Request((str(path),), tokenizer="byte", **options)  # type: ignore[arg-type]
    return prepare.prepare(request, out=path.parent / f"{path.name}.set", force=True).manifest


def text_of(path: Path, **options: object) -> str:
    """All text of a set of bytes made from a file, split at its end."""
    of(path, split="tail", **options)
    data = tokens.open_data(path.parent / f"{path.name}.set")
    return bytes([*data.train, *data.val]).decode()


def rows_as_parquet(path: Path, rows: list[Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def in_every_format(folder: Path, rows: list[dict[str, Any]]) -> list[Path]:
    """The same records as lines, as an array and as Parquet."""
    lines, array = folder / "a.jsonl", folder / "b.json"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    array.write_text(json.dumps(rows))
    return [lines, array, rows_as_parquet(folder / "c.parquet", rows)]


def test_records_without_text_are_left_out_and_counted_in_every_format(tmp_path: Path) -> None:
    cells = [f"words {i}" if i % 3 else (None, "")[i % 2] for i in range(60)]
    table = tmp_path / "a.csv"
    table.write_text("id,text\n" + "".join(f"{i},{cell or ''}\n" for i, cell in enumerate(cells)))
    for path in [table, *in_every_format(tmp_path, [{"id": 7, "text": cell} for cell in cells])]:
        for errors in ("strict", "skip"):
            made = of(path, errors=errors, limit=25)  # a record without text is no document
            receipt = made["receipt"]
            assert (receipt["documents"], receipt["skipped_records"]) == (25, 0), path.name
            assert receipt["empty_records"] == 13
            assert "records without any text left out: 13" in notes(made)


def test_a_single_chat_is_read_however_it_is_indented(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    for indent in (None, 2):
        path.write_text(json.dumps({"title": "one", "talk": CHAT}, indent=indent))
        assert text_of(path, text_field="talk") == WRITTEN
    path.write_text(json.dumps({"talk": [3]}, indent=2))
    with pytest.raises(UserError, match=r"chat\.json: field 'talk' is an array, not text"):
        of(path, text_field="talk")


def test_lines_of_records_under_another_name_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text('{"text": "one"}\n' * 30)
    assert any("its lines are records: give it a name" in note for note in notes(of(path)))
    path.write_text('{"text": "one"}\nno record\n' * 30)
    assert not list(notes(of(path)))


def test_records_that_all_lack_text_are_not_called_an_empty_input(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": null, "text": ""}\n' * 7)
    for field in ("text", "body"):
        with pytest.raises(
            UserError, match=f"the field '{field}' of all 7 records is em"
        ) as caught:
            of(path, text_field=field)
        assert "--text-field (in a recipe" in caught.value.hint


CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Two\nlines: one"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
    {"role": "assistant", "content": "Füße"},
]
WRITTEN = "system: Be kind.\nuser: Two\nlines: one\nassistant: Füße\n"


def test_chats_are_written_out_in_every_format(tmp_path: Path) -> None:
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"id": f"number {i}", "messages": CHAT, "talk": shared} for i in range(20)]
    rows.append({"id": "none", "messages": [], "talk": None})
    for path in in_every_format(tmp_path, rows):
        with pytest.raises(UserError, match=f"{path.name}.*: no (field|column) 'text'") as caught:
            of(path)
        assert "'id', 'messages', 'talk'; name one with --text-field messages" in caught.value.hint
        assert text_of(path, text_field="messages") == WRITTEN * 20
        assert text_of(path, text_field="talk") == "human: Hi\ngpt: Hello\n" * 20
        made = of(path, text_field="talk", split="tail")
        receipt = made["receipt"]
        assert (receipt["documents"], receipt["chats"], receipt["empty_records"]) == (20, 20, 1)
        assert any("records that are chats: 20" in note for note in notes(made))
        data = tokens.open_data(tmp_path / f"{path.name}.set")
        assert all(certify.certify(data, split).passed for split in tokens.SPLITS)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user"}, "message 2 has neither role and content nor from and value"),
        ({"role": "user", "content": 3}, "'content' of message 2 is a number, not text"),
        ({"role": None, "content": "x"}, "'role' of message 2 is null, not text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "a part of message 2 is not text"),
        ("hello", "message 2 has neither"),
    ],
)
def test_a_broken_message_is_named_and_costs_its_record(
    tmp_path: Path, message: Any, reason: str
) -> None:
    good = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"m": m}) + "\n" for m in (good, [*good, message]) * 9))
    with pytest.raises(UserError, match=f"line 2: field 'm': {reason}") as caught:
        of(path, text_field="m")
    assert "--errors skip" in caught.value.hint
    made = of(path, text_field="m", errors="skip", split="tail")
    assert (made["receipt"]["documents"], made["receipt"]["skipped_records"]) == (9, 9)
    assert made["receipt"]["bytes"] == 9 * len("user: a\nb\n")


def test_a_path_leads_into_a_record(tmp_path: Path) -> None:
    row = {"id": 1, "a": {"b": {"c": "deep"}, "n": 3}, "a.b": "own name"}
    for path in in_every_format(tmp_path, [*[row] * 9, row | {"a": None}]):
        assert text_of(path, text_field="a.b.c") == "deep" * 9
        assert text_of(path, text_field="a.b") == "own name" * 10
        for wrong, said in (("a.b.x", "no (field|column) 'a.b.x'"), ("a", "'a' (is|holds) ")):
            with pytest.raises(UserError, match=said) as caught:
                of(path, text_field=wrong)
            assert "'a.b.c'" in caught.value.hint
        assert "--text-field a.b" in caught.value.hint
        with pytest.raises(UserError, match=r"'a\.n' (is a number|holds int64), not text"):
            of(path, text_field="a.n")


@given(
    st.recursive(
        st.just("text"), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
    ).filter(lambda value: isinstance(value, dict))
)
def test_every_path_that_is_listed_leads_to_its_text(record: dict[str, Any]) -> None:
    found = fields.texts(record)
    assert all(fields.look_up(record, path) == text for path, text in found.items())
    assert not fields.has(record, "".join(found) + ".x")


def test_few_records_are_split_by_their_text(tmp_path: Path) -> None:
    path, said = tmp_path / "a.jsonl", list[str]()
    path.write_text("".join(json.dumps({"text": f"text number {i}. "}) + "\n" for i in range(3)))
    for kind in ("byte", "char", "bpe:260"):
        request = Request((str(path),), tokenizer=kind)
        folder = prepare.prepare(request, out=tmp_path / kind, report=said.append).folder
        data = tokens.open_data(folder)
        assert (data.manifest.split, data.manifest.raw["receipt"]["documents"]) == ("tail", 3)
        assert len(data.val) >= 2
        assert "--split tail" in said[-1] or "--split tail" in said[-2]
        assert certify.certify(data, "val").passed
        assert not prepare.prepare(request, out=folder).fresh
    with pytest.raises(UserError, match="the val split has 0 of") as caught:
        of(path, split="hash")
    assert "--split tail (in a recipe: data.split)" in caught.value.hint
