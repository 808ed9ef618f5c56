"""Whatever Python's csv module writes is read back, row by row; bad rows cost only themselves."""

from __future__ import annotations

import csv
import io
import itertools
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from nanogpt_cli.errors import UserError
from nanogpt_cli.text import prepare
from nanogpt_cli.text.prepare import Request
from nanogpt_cli.text.sources import csv_records
from nanogpt_cli.text.sources.decoding import Peekable
from nanogpt_cli.text.sources.documents import Reader, Tally
from nanogpt_cli.text.tokenizers import cuts

CELLS = st.text(st.sampled_from("ab c,;\t|\"'\n\r\x0b\u2028é日😀.5"), min_size=1, max_size=12)


def read(text: str | bytes, errors: str = "strict", *, tabs: bool = False, field: str = "text",
         tally: Tally | None = None) -> list[str]:  # fmt: skip
    """The documents of a CSV file with this content."""
    data = text if isinstance(text, bytes) else text.encode()
    reader = Reader(cuts.character_cut, errors=errors, text_field=field)
    chunks = csv_records.csv(Peekable(io.BytesIO(data)), "f", tabs, reader, tally or Tally())
    return [chunk.data.decode() for chunk in chunks]


def written(rows: list[list[str]], **dialect: Any) -> str:
    """What Python's csv module writes."""
    out = io.StringIO(newline="")
    csv.writer(out, **dialect).writerows(rows)
    return out.getvalue()


def readable(text: str, rows: list[list[str]], **dialect: Any) -> bool:
    """Whether Python's csv module itself reads the rows back."""
    return list(csv.reader(io.StringIO(text, newline=""), **dialect)) == rows


def common_too(text: str, rows: list[list[str]], delimiter: str) -> bool:
    """Whether the usual quotes explain a text as well: ``',0`` twice is two rows, or one cell."""
    try:
        other = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    as_wide = {len(row) for row in other} == {len(rows[0])}
    return as_wide and sum(map(len, chain(*other))) <= sum(map(len, chain(*rows)))


@settings(max_examples=60)
@given(
    st.lists(CELLS, min_size=1, max_size=9),
    st.sampled_from(",;\t|"),
    st.sampled_from("\"'"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
)
@example(["don't"], ",", "'", csv.QUOTE_MINIMAL, "\n", False)
@example(["'quoted'", 'with "both"'], ";", '"', csv.QUOTE_ALL, "\r", True)
def test_every_dialect_is_read_back(
    cells: list[str], delimiter: str, quote: str, quoting: int, end: str, last: bool
) -> None:
    rows = [["text", "id"], *([cell, str(i)] for i, cell in enumerate(cells))]
    rows = [row[::-1] for row in rows] if last else rows
    text = written(rows, delimiter=delimiter, quotechar=quote, quoting=quoting, lineterminator=end)
    assume(readable(text, rows, delimiter=delimiter, quotechar=quote))
    assume(quote in text or '"' not in text)  # nothing shows that this one is no quote
    assume(quote == '"' or not common_too(text, rows, delimiter))
    assert read(text, tabs=last) == cells


def test_a_separator_in_a_quoted_name_divides_nothing() -> None:
    with pytest.raises(UserError) as found:
        read('"Text;x";b\n"hello; you";1\n')
    assert "'Text;x', 'b'" in str(found.value.hint)
    assert read('"Text;x";b\n"hello; you";1\n', field="Text;x") == ["hello; you"]


def test_of_two_readings_the_usual_quotes_count() -> None:
    assert read("text,id\n',0\n',1\n") == ["'", "'"]


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotes_here_and_there(quote: str) -> None:
    rows = ["1,'hello, ''world'''", "2,'foo'", "3,it is late", "4,don_t", "5,", "6,'a\nb'"]
    cells = ["hello, 'world'", "foo", "it is late", "don_t", "a\nb"]
    text = "\n".join(["id,text", *rows, ""]).replace("'", quote)
    # A mark within a cell that has none around it is text.
    assert read(text.replace("_", "'")) == [
        cell.replace("'", quote).replace("_", "'") for cell in cells
    ]


def test_single_quotes_are_not_seen_where_double_ones_are_broken() -> None:
    rows = ["id,text", '1,"said, ""so"""', "2,'tis", '3,"open" end', "4,'all'", ""]
    assert read("\n".join(rows), "skip") == ['said, "so"', "'tis", "'all'"]
    # Nor where they are part of every text.
    assert read("id,text\n1,'Yes'\n2,'No'\n\n") == ["'Yes'", "'No'"]


def test_excels_line_about_the_separator_is_no_row() -> None:
    for end in ("\n", "\r\n"):
        text = end.join(["sep=;", "id;text", "1;one, two", "2;three", "3;a;b", ""])
        assert read(text, "skip") == ["one, two", "three"]
        with pytest.raises(UserError, match="line 5: 3 columns"):
            read(text)


@settings(max_examples=40)
@given(st.lists(CELLS, min_size=1, max_size=9), st.sampled_from(",;\t|"), st.booleans())
@example(["'", "'"], ",", False)
def test_escaped_quotes_are_read_back(cells: list[str], delimiter: str, all_quoted: bool) -> None:
    # Without an escaped quote nothing tells this dialect from the usual one.
    cells = [*cells, 'said "so"']
    rows = [["text", "id"], *([cell, str(i)] for i, cell in enumerate(cells))]
    dialect: dict[str, Any] = {"delimiter": delimiter, "doublequote": False, "escapechar": "\\"}
    quoting = csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL
    text = written(rows, lineterminator="\n", quoting=quoting, **dialect)
    assume(readable(text, rows, **dialect))
    assert read(text) == cells


@pytest.mark.parametrize("name", csv.list_dialects())
def test_registered_dialects(name: str) -> None:
    cells = ['plain "quoted"', "two\nlines", "a, b; c\td", "'single'"]
    rows = [["id", "text"], *([str(i), cell] for i, cell in enumerate(cells))]
    assert read(written(rows, dialect=name)) == cells


def test_only_the_sample_decides_and_the_rest_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_records, "_SAMPLE", 100)
    cells = [f"row {i}; with 'marks' and, \"quotes\"\nin two lines" for i in range(50)]
    rows = [["id", "text"], *([str(i), cell] for i, cell in enumerate(cells))]
    for delimiter in ",;\t|":
        assert read(written(rows, delimiter=delimiter)) == cells


def test_what_was_recognised_is_said() -> None:
    tally = Tally()
    read("id;text\n1;a\n", tally=tally)
    read("id,text\n1,a\n", tally=tally)
    read("id\ttext\n1\ta\n", tabs=True, tally=tally)
    read("id,text\n1,a\n", tabs=True, tally=tally)
    assert tally.remarks == {
        "read as CSV with semicolons between the columns": ["f"],
        "read as CSV with commas between the columns": ["f"],
    }


def test_a_missing_column_names_one_that_works() -> None:
    text = 'id;"body";lang\n1;"a long text; quoted";de\n'
    with pytest.raises(UserError, match="no column 'text'") as caught:
        read(text)
    assert "'id', 'body', 'lang'" in caught.value.hint
    assert "--text-field body (in a recipe: data.text_field)" in caught.value.hint
    assert read(text, field="body") == ["a long text; quoted"]
    for empty in ("", "\n"):
        with pytest.raises(UserError, match="no column 'text'"):
            read(empty)


GOOD = "".join(f'{i},"fine {i}"\n' for i in range(20))


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ('41,"He said "hello" to me"\n', 22),
        ('41,"He said hello\n', 22),  # the open quote takes the next row with it
        ("41,one,two\n", 22),
        ("41\n", 22),
        ('41,"a"b"c,"d\n', 22),
    ],
)
def test_a_bad_row_costs_only_itself(bad: str, line: int) -> None:
    text = "id,text\n" + GOOD + bad + GOOD
    with pytest.raises(UserError, match=f"line {line}") as caught:
        read(text)
    assert "--errors skip" in caught.value.hint
    tally = Tally()
    assert read(text, "skip", tally=tally) == [f"fine {i}" for i in range(20)] * 2
    assert tally.skipped_records == 1
    assert tally.first_skip is not None
    assert f"line {line}" in tally.first_skip.message


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["good", "open", "wide", "stray"]), max_size=12))
def test_bad_rows_never_take_a_good_one_along(kinds: list[str]) -> None:
    rows = {"good": '{},"fine"', "open": '{},"never closed', "wide": "{},a,b", "stray": '{},"a"b"'}
    text = "id,text\n" + "".join(rows[k].format(i) + "\n" for i, k in enumerate(kinds))
    assume(not any(a == "open" and b in ("open", "stray") for a, b in itertools.pairwise(kinds)))
    assert read(text, "skip").count("fine") == kinds.count("good")


def test_invalid_bytes_matter_in_the_wanted_column_alone() -> None:
    data = b"id,text\n\xff,fine\n2,b\xffad\n"
    with pytest.raises(UserError, match=r"line 3: invalid UTF-8 \(0xff\)"):
        read(data)
    for errors, text in (("replace", "b?ad"), ("skip", "bad")):
        tally = Tally()
        assert read(data, errors, tally=tally) == ["fine", text]
        assert tally.broken_bytes == 1


def test_an_endless_quote_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_records, "LONGEST_RECORD", 1000)
    text = "id,text\n" + GOOD + '9,"open\n' + "filler\n" * 400
    with pytest.raises(UserError, match="line 22: not CSV: more than 1,000 characters"):
        read(text)


def test_excel_as_it_saves(tmp_path: Path) -> None:
    rows = [["id", "text"], *([str(i), f"Grüße; {i}"] for i in range(30))]
    files = {
        "bom.csv": written(rows, quoting=csv.QUOTE_ALL).encode("utf-8-sig"),
        "semi.csv": written(rows, delimiter=";").encode("utf-8-sig"),
        "unicode.csv": written(rows, delimiter="\t").encode("utf-16"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        request = Request((str(tmp_path / name),), tokenizer="byte")
        made = prepare.prepare(request, out=tmp_path / f"d-{name}")
        assert made.manifest["receipt"]["documents"] == 30
        assert made.manifest["receipt"]["characters"] == sum(len(row[1]) for row in rows[1:])
