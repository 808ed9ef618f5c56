"""Notes and tags of a run, and what else may stand in their file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanogpt_cli.errors import UserError
from nanogpt_cli.run import notes
from nanogpt_cli.run.folder import RunFolder

anything = st.recursive(
    st.none() | st.booleans() | st.floats(-9, 9) | st.integers(-9, 9) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)  # fmt: skip
keys = st.sampled_from(["note", "tags", "pinned", "hidden", "color", "later"])


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").touch()
    return RunFolder(tmp_path / "run")


def test_what_is_written_is_read_and_nothing_is_left_behind(run: RunFolder) -> None:
    notes.change(run, note=" two\nlines ", tags=("a", "b-2"))
    notes.change(run, pinned=True, color=3)
    found = notes.read(run)
    assert found == notes.Notes("two lines", ("a", "b-2"), True, False, 3)
    assert sorted(path.name for path in run.path.iterdir()) == ["notes.json", "recipe.toml"]
    notes.change(run, note="", tags=(), pinned=False, color=None)
    assert not run.notes.exists()


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(st.dictionaries(keys, anything))
def test_any_file_is_harmless_and_keys_of_others_stay(run: RunFolder, values: Any) -> None:
    run.notes.write_text(json.dumps(values), encoding="utf-8")
    found = notes.read(run)
    if found.problem:  # half a surrogate pair
        return
    assert isinstance(found.note, str)
    assert len(found.tags) <= notes.MOST_TAGS
    assert found.color is None or 0 <= found.color < notes.COLORS
    assert notes.change(run, note="mine").note == "mine"
    after = notes.read(run)
    assert (after.tags, after.hidden, after.others) == (found.tags, found.hidden, found.others)
    assert after.others == {k: v for k, v in values.items() if k == "later"}


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30
)
@given(st.text(max_size=3000))
def test_any_note_is_kept_on_one_line_or_refused(run: RunFolder, text: str) -> None:
    try:
        notes.change(run, note=text)
    except UserError:
        assert len(" ".join(text.split())) > notes.LONGEST_NOTE
        return
    assert notes.read(run).note == " ".join(text.split())


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), max_size=20), st.text(max_size=60))
def test_tags_stay_words_few_and_distinct(before: list[str], edit: str) -> None:
    try:
        found = notes.edited_tags(notes.changed_tags((), before), edit)
    except UserError:
        return
    assert len(found) == len(set(found)) <= notes.MOST_TAGS
    assert all(tag == tag.strip() and len(tag) <= 32 and tag[0] not in "+-" for tag in found)


def test_a_broken_file_is_told_and_not_overwritten(run: RunFolder) -> None:
    run.notes.write_text("{", encoding="utf-8")
    assert "notes.json is not readable JSON" in notes.read(run).problem
    with pytest.raises(UserError, match=r"notes\.json"):
        notes.change(run, note="x")
    assert run.notes.read_text() == "{"
    run.notes.write_text('{"note": "' + "x" * notes.LARGEST + '"}')
    assert "more than" in notes.read(run).problem


def test_a_removed_run_does_not_come_back(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run any more"):
        notes.change(RunFolder(tmp_path / "gone"), pinned=True)
    assert not (tmp_path / "gone").exists()
